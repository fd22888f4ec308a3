"""The residual blocks of torchvision's mc3_18 and r2plus1d_18 (Tran et al. 2018, https://arxiv.org/abs/1711.11248).

MC3 has 3D convolutions in its first stage only. The later stages process single frames, and keep T. R(2+1)D factorizes every
3x3x3 convolution into a 1x3x3 and a 3x1x1 convolution, with as many channels in between as keep the number of weights.

Letters: N clips, C channels, M channels between the two convolutions, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssv2rt.models.conv import Conv3d
from ssv2rt.models.residual import Residual
from ssv2rt.models.resnet3d import Strides, shortcut


class FrameBlock(Residual):
    """A residual block of two 1x3x3 convolutions. It keeps T and ignores the temporal stride."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        stride = (1, *stride[1:])
        convolutions = (
            nn.Sequential(_spatial_conv(channels_in, channels, stride), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(_spatial_conv(channels, channels), nn.BatchNorm3d(channels)),
        )
        super().__init__(convolutions, shortcut(channels_in, channels, stride), channels)


class FactorizedBlock(Residual):
    """A residual block of two factorized convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        middle = channels_in * channels * 27 // (channels_in * 9 + 3 * channels)
        convolutions = (
            FactorizedConv3d(channels_in, middle, channels, stride, nn.ReLU(True)),
            FactorizedConv3d(channels, middle, channels, (1, 1, 1)),
        )
        super().__init__(convolutions, shortcut(channels_in, channels, stride), channels)


class FactorizedConv3d(nn.Sequential):
    """A 1x3x3 convolution, batch norm, ReLU, a 3x1x1 convolution, and a batch norm, followed by the modules in `after`.

    For torchvision's weight names, the first four modules are nested one level deeper than the rest: `0.0`, `0.1`, `0.3`,
    and `1`. Indexing and `len` treat all of them as one flat sequence, in which each batch norm directly follows its
    convolution. `fold_batch_norms` depends on that.
    """

    def __init__(self, channels_in: int, middle: int, channels: int, stride: Strides, *after: nn.Module) -> None:
        pair = nn.Sequential(
            _spatial_conv(channels_in, middle, (1, *stride[1:])),
            nn.BatchNorm3d(middle),
            nn.ReLU(True),
            Conv3d(middle, channels, (3, 1, 1), stride=(stride[0], 1, 1), padding=(1, 0, 0), bias=False),
        )
        super().__init__(pair, nn.BatchNorm3d(channels), *after)

    def __len__(self) -> int:
        return len(self._layers())

    def __getitem__(self, number: Any) -> Any:
        owner, name = self._layers()[number]
        return owner._modules[name]

    def __setitem__(self, number: int, module: nn.Module) -> None:
        owner, name = self._layers()[number]
        owner._modules[name] = module

    def _layers(self) -> list[tuple[nn.Module, str]]:
        first, *rest = self._modules
        pair = self._modules[first]
        assert pair is not None
        return [*((pair, name) for name in pair._modules), *((self, name) for name in rest)]


def factorized_stem(width: int) -> nn.Sequential:
    """The stem of R(2+1)D, a 1x7x7 and a 3x1x1 convolution: (N, 3, T, H, W) to (N, width, T, H/2, W/2).

    M is 45 if `width` is 64.
    """
    middle = round(45 * width / 64)
    return nn.Sequential(
        Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(True),
        Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(True),
    )


def _spatial_conv(channels_in: int, channels: int, stride: Strides = (1, 1, 1)) -> Conv3d:
    return Conv3d(channels_in, channels, (1, 3, 3), stride=stride, padding=(0, 1, 1), bias=False)
