"""What all residual blocks share (He et al. 2016, https://arxiv.org/abs/1512.03385): convolutions beside a shortcut.

Two things for training live here, and neither adds a weight: stochastic depth (Huang et al. 2016,
https://arxiv.org/abs/1603.09382), and checkpointing of activations (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

Letters: N clips (N T frames in a 2D network), C channels.
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
        convolutions: in order; they become `conv1`, `conv2` and so on. The last one ends without an activation.
        downsample: brings x into the shape of the result; None where it has that shape.
        channels: C of the result, kept as `channels_out`.
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
            if torch.compiler.is_compiling():  # it sees to the running statistics itself, and takes no contexts
                return cast(torch.Tensor, checkpoint(self._compute, x, use_reentrant=False))
            return cast(
                torch.Tensor, checkpoint(self._compute, x, use_reentrant=False, context_fn=lambda: _contexts(self))
            )
        return self._compute(x)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.length + 1):
            x = getattr(self, f"conv{number}")(x)
        if self.training and self.drop_path > 0:
            x = x * _kept(x, self.drop_path)
        return cast(torch.Tensor, self.relu(x + shortcut))


def set_drop_path(model: nn.Module, p: float) -> None:
    """In training, block number l of L is left out of a sample with probability p l / L: only its shortcut is used.

    Where it is used it counts 1 / (1 - p l / L) times, so that the mean is that of evaluation, where every block is
    used. A sample is a clip in a 3D network, and a frame in a 2D network.

    Args:
        model: changed in place. Weights and their names stay as they are.
        p: 0 or more, and less than 1; 0 turns it off.

    Raises:
        UsageError: p is out of range, or more than 0 for a network without residual blocks.
    """
    if not 0 <= p < 1:
        raise UsageError(f"drop path {p:g}: must be 0 or more, and less than 1")
    blocks = _blocks(model)
    if p and not blocks:
        raise UsageError(f"drop path {p:g}: this network has no residual blocks to leave out; set it to 0")
    for number, block in enumerate(blocks, start=1):
        block.drop_path = p * number / len(blocks)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """In training, keeps only what enters a residual block, and computes the rest of it again for the gradient.

    Less memory for about a third more computation. Gradients and running statistics are those without it.

    Raises:
        UsageError: it is turned on for a network without residual blocks.
    """
    blocks = _blocks(model)
    if on and not blocks:
        raise UsageError("checkpointing: this network has no residual blocks to compute again; turn it off")
    for block in blocks:
        block.checkpointing = on


def _blocks(model: nn.Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def _kept(x: torch.Tensor, p: float) -> torch.Tensor:
    """(N, 1, ...): 0 with probability p, else 1 / (1 - p)."""
    kept = torch.empty((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
    return kept.bernoulli_(1 - p).div_(1 - p)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first computation, and for the second."""
    return nullcontext(), _statistics_left_alone(block)


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """Batch norms do not take the same batch into their running statistics a second time."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
