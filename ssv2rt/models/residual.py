"""The base class of all residual blocks (He et al. 2016, https://arxiv.org/abs/1512.03385).

It supports stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382) and activation checkpointing (Chen et al.
2016, https://arxiv.org/abs/1604.06174) in training. Neither adds weights.

Letters: N samples (clips, or the N T frames of a 2D network), C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssv2rt.core.errors import UsageError


class Residual(nn.Module):
    """x (N, C, ...) to relu(convolutions(x) + shortcut(x)).

    Args:
        convolutions: the main path, in order, registered as `conv1`, `conv2` and so on. The last has no activation.
        downsample: the shortcut, which brings x into the shape of the result; None for the identity.
        channels: C of the result, stored as `channels_out`.
    """

    def __init__(self, convolutions: Sequence[nn.Module], downsample: nn.Module | None, channels: int) -> None:
        super().__init__()
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{number}", convolution)
        self.downsample = downsample
        self.relu = nn.ReLU(True)
        self.length = len(convolutions)
        self.channels_out = channels
        self.drop_path = 0.0
        self.checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # it preserves running statistics, and does not support context_fn
                return cast(torch.Tensor, checkpoint(self._compute, x, use_reentrant=False))
            return cast(
                torch.Tensor,
                checkpoint(self._compute, x, use_reentrant=False, context_fn=lambda: _checkpoint_contexts(self)),
            )
        return self._compute(x)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.length + 1):
            x = getattr(self, f"conv{number}")(x)
        if self.training and self.drop_path > 0:
            x = x * _drop_path_mask(x, self.drop_path)
        return cast(torch.Tensor, self.relu(x + shortcut))


def set_drop_path(model: nn.Module, p: float) -> None:
    """Sets the drop rate of stochastic depth: in training, block l of L is skipped with probability p l / L.

    A skipped block passes only its shortcut on. The main path of a block that is not skipped is scaled by
    1 / (1 - p l / L), so that its expected value is that of evaluation, where no block is skipped. Blocks are skipped for
    each sample independently: for each clip in a 3D network, and for each frame in a 2D network.

    Args:
        model: changed in place. Weights and their names do not change.
        p: drop rate of the last block, 0 <= p < 1; 0 turns stochastic depth off.

    Raises:
        UsageError: p is out of range, or more than 0 for a network without residual blocks.
    """
    if not 0 <= p < 1:
        raise UsageError(f"drop path {p:g}: must be 0 or more, and less than 1")
    blocks = _residual_blocks(model)
    if p and not blocks:
        raise UsageError(f"drop path {p:g}: this network has no residual blocks to leave out; set it to 0")
    for number, block in enumerate(blocks, start=1):
        block.drop_path = p * number / len(blocks)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """Turns activation checkpointing on or off: only the input of each residual block is kept for the backward pass.

    It saves memory at the cost of about a third more computation. Gradients and running statistics do not change.

    Raises:
        UsageError: it is turned on for a network without residual blocks.
    """
    blocks = _residual_blocks(model)
    if on and not blocks:
        raise UsageError("checkpointing: this network has no residual blocks to compute again; turn it off")
    for block in blocks:
        block.checkpointing = on


def _residual_blocks(model: nn.Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def _drop_path_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """A random mask (N, 1, ...): 0 with probability p, else 1 / (1 - p)."""
    kept = torch.empty((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
    return kept.bernoulli_(1 - p).div_(1 - p)


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the forward pass and of its recomputation, for `checkpoint`."""
    return nullcontext(), running_statistics_frozen(block)


@contextmanager
def running_statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Batches in the block do not change the running statistics of a module's batch norms."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before, strict=True):
        # A count that is not used: PyTorch's SyncBatchNorm needs one.
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
