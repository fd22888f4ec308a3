"""The blocks of torchvision's mc3_18 and r2plus1d_18 (Tran et al. 2018, https://arxiv.org/abs/1711.11248).

MC3 is 3D in its first stage only: the later ones look at single frames, and keep T. R(2+1)D does every 3x3x3
convolution in two steps, 1x3x3 and then 3x1x1, with so many channels in between that there are as many weights as
before.

Letters: N clips, C channels, M channels in between, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssv2rt.models.conv import Conv3d
from ssv2rt.models.residual import Residual
from ssv2rt.models.resnet3d import Strides, shortcut


class FrameBlock(Residual):
    """Two 1x3x3 convolutions beside a shortcut. T is kept, whatever the stride in time."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        stride = (1, *stride[1:])
        convolutions = (
            nn.Sequential(_in_space(channels_in, channels, stride), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(_in_space(channels, channels), nn.BatchNorm3d(channels)),
        )
        super().__init__(convolutions, shortcut(channels_in, channels, stride), channels)


class FactorisedBlock(Residual):
    """Two convolutions in two steps each beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        middle = channels_in * channels * 27 // (channels_in * 9 + 3 * channels)
        convolutions = (
            Factorised(channels_in, middle, channels, stride, nn.ReLU(True)),
            Factorised(channels, middle, channels, (1, 1, 1)),
        )
        super().__init__(convolutions, shortcut(channels_in, channels, stride), channels)


class Factorised(nn.Sequential):
    """1x3x3, batch norm, ReLU, 3x1x1; then a batch norm, and what else is given.

    torchvision's names put the first four one level deeper than the rest: `0.0`, `0.1`, `0.3`, and `1`. By number they
    are one sequence, in which each batch norm is next to its convolution, as it has to be to be folded into it.
    """

    def __init__(self, channels_in: int, middle: int, channels: int, stride: Strides, *after: nn.Module) -> None:
        pair = nn.Sequential(
            _in_space(channels_in, middle, (1, *stride[1:])),
            nn.BatchNorm3d(middle),
            nn.ReLU(True),
            Conv3d(middle, channels, (3, 1, 1), stride=(stride[0], 1, 1), padding=(1, 0, 0), bias=False),
        )
        super().__init__(pair, nn.BatchNorm3d(channels), *after)

    def __len__(self) -> int:
        return len(self._places())

    def __getitem__(self, number: Any) -> Any:
        owner, name = self._places()[number]
        return owner._modules[name]

    def __setitem__(self, number: int, module: nn.Module) -> None:
        owner, name = self._places()[number]
        owner._modules[name] = module

    def _places(self) -> list[tuple[nn.Module, str]]:
        first, *rest = self._modules
        pair = self._modules[first]
        assert pair is not None
        return [*((pair, name) for name in pair._modules), *((self, name) for name in rest)]


def factorised_stem(width: int) -> nn.Sequential:
    """(N, 3, T, H, W) to (N, width, T, H/2, W/2): 1x7x7, and then 3x1x1; M is 45 where width is 64."""
    middle = round(45 * width / 64)
    return nn.Sequential(
        Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(True),
        Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(True),
    )


def _in_space(channels_in: int, channels: int, stride: Strides = (1, 1, 1)) -> Conv3d:
    return Conv3d(channels_in, channels, (1, 3, 3), stride=stride, padding=(0, 1, 1), bias=False)
