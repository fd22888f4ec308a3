"""Bottlenecks of a convolution over time, (t, 1, 1), and one over space, (1, 3, 3).

Slow (Feichtenhofer et al. 2019, https://arxiv.org/abs/1812.03982) has t = 1 in its first two stages, and t = 3 in the others.
TSM (Lin et al. 2019, https://arxiv.org/abs/1811.08383) instead shifts an eighth of the channels by one frame into the past,
and another eighth into the future, before a convolution of 1x1x1.

Letters: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ssv2rt.models.conv import Conv3d
from ssv2rt.models.residual import Residual
from ssv2rt.models.resnet3d import Block, Strides, shortcut


class FactorizedBottleneck(Residual):
    """A residual block of convolutions of (t, 1, 1), (1, 3, 3) and 1x1x1; the last has four times the channels of the others.

    Args:
        channels_in: C of the input.
        channels: C between the convolutions.
        stride: over time in the first convolution, over space in the second.
        first: builds the first convolution from its input channels, its output channels and its temporal stride.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: Strides, first: Callable[[int, int, int], nn.Conv3d]
    ) -> None:
        wide = 4 * channels
        space = Conv3d(channels, channels, (1, 3, 3), stride=(1, *stride[1:]), padding=(0, 1, 1), bias=False)
        convolutions = (
            nn.Sequential(first(channels_in, channels, stride[0]), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(space, nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(Conv3d(channels, wide, 1, bias=False), nn.BatchNorm3d(wide)),
        )
        super().__init__(convolutions, shortcut(channels_in, wide, stride), wide)


def temporal_bottleneck(frames: int) -> Block:
    """A factorized bottleneck whose first convolution is (frames, 1, 1); `frames` is odd."""

    def first(channels_in: int, channels: int, stride: int) -> nn.Conv3d:
        return Conv3d(
            channels_in, channels, (frames, 1, 1), stride=(stride, 1, 1), padding=(frames // 2, 0, 0), bias=False
        )

    return lambda channels_in, channels, stride: FactorizedBottleneck(channels_in, channels, stride, first)


def shift_bottleneck(channels_in: int, channels: int, stride: Strides) -> Residual:
    """A factorized bottleneck whose first convolution is a `ShiftConv3d`."""
    return FactorizedBottleneck(channels_in, channels, stride, lambda before, after, _: ShiftConv3d(before, after))


class ShiftConv3d(Conv3d):
    """A temporal shift, and then a 1x1x1 convolution without stride and bias: (N, C, T, H, W) to (N, channels, T, H, W).

    Of C // 8 = f channels, the first f come from the next frame, the next f from the previous frame, and the rest from the
    same frame. Beyond the ends of the clip there are zeros.

    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(shift(x))

    def folded(self) -> Conv3d:
        """The same function as one convolution of (3, 1, 1) with zero padding, for engines.

        A kernel is zero in two of three frames for each input channel, so that it has three times the arithmetic. OpenVINO
        (2026.4) takes 1.1 times as long for TSM-R50 in int8 so, and 1.2 to 1.3 times in fp32 and bf16.
        """
        channels, f = self.in_channels, self.in_channels // 8
        whole = Conv3d(channels, self.out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False).to(self.weight)
        with torch.no_grad():
            whole.weight.zero_()
            for frame, part in ((2, slice(0, f)), (0, slice(f, 2 * f)), (1, slice(2 * f, channels))):
                whole.weight[:, part, frame] = self.weight[:, part, 0]
        return whole.train(self.training)


def shift(x: torch.Tensor) -> torch.Tensor:
    """Shifts channels of (N, C, T, H, W) over time, as described in `ShiftConv3d`. The memory format is kept."""
    f = x.shape[1] // 8
    if f == 0:
        return x
    from_next, from_previous, same = x.split([f, f, x.shape[1] - 2 * f], 1)
    from_next = F.pad(from_next[:, :, 1:], (0, 0, 0, 0, 0, 1))
    from_previous = F.pad(from_previous[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat((from_next, from_previous, same), 1)


def shifted_kernels(model: nn.Module) -> set[str]:
    """Names of the weights of all `ShiftConv3d` of a network."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, ShiftConv3d)}
