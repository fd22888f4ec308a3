"""Precise batch norm: statistics over many training batches in place of running averages (Wu and Johnson 2021,
https://arxiv.org/abs/2105.07576, section 3).

Running averages are of weights that change with each optimizer step, and of small batches they are noisy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssv2rt.core.hardware import DTYPES, Precision


def measure_batch_norm(model: nn.Module, clips: Iterable[torch.Tensor], precision: Precision) -> None:
    """Replaces the running statistics of all batch norms by the mean of those of some batches.

    Everything else stays as it is, also the state of random generators: dropout is off.

    Args:
        model: changed in place, and left in evaluation mode.
        clips: batches, each uint8 (N, T, H, W, 3), on the device of the model. Empty ones are left out.
        precision: of the forward pass, by autocast.
    """
    model.eval()
    with _averaging(model), torch.no_grad():
        for batch in clips:
            if len(batch):
                with torch.autocast(batch.device.type, DTYPES[precision], enabled=precision != "fp32"):
                    model(batch)


@contextlib.contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """In the block, batch norms start anew and average over batches with equal weights."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
            norm.eval()
