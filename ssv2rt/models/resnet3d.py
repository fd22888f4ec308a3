"""ResNet with 3D convolutions throughout (Tran et al. 2018, https://arxiv.org/abs/1711.11248; Hara et al. 2018).

The stem is Conv3d(3, 64, (3, 7, 7), stride (1, 2, 2)), which keeps T and halves H and W. Four stages of residual blocks
follow, with spatial strides 1, 2, 2, 2 and configurable temporal strides, and then the average over time and space.
Module names are those of torchvision's video ResNets, so that published weights can be loaded.

Letters: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv3d
from ssv2rt.models.residual import Residual

Strides = tuple[int, int, int]
"""Strides over time, height and width."""

Block = Callable[[int, int, Strides], Residual]
"""Builds a residual block from its input channels, the channels of its stage, and its strides."""


class BasicBlock(Residual):
    """A residual block of two 3x3x3 convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        convolutions = (
            nn.Sequential(_conv(channels_in, channels, 3, stride), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, channels, 3), nn.BatchNorm3d(channels)),
        )
        super().__init__(convolutions, shortcut(channels_in, channels, stride), channels)


class Bottleneck(Residual):
    """A residual block of 1x1x1, 3x3x3 and 1x1x1 convolutions; the last has four times as many channels as the others."""

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        wide = 4 * channels
        convolutions = (
            nn.Sequential(_conv(channels_in, channels, 1), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, channels, 3, stride), nn.BatchNorm3d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, wide, 1), nn.BatchNorm3d(wide)),
        )
        super().__init__(convolutions, shortcut(channels_in, wide, stride), wide)


class ResNet3D(Backbone):
    """Normalized clips (N, 3, T, H, W) to features (N, D); D is `self.feature_size`.

    Args:
        blocks: the types of the residual blocks of each of the four stages, in order.
        width: channels after the stem.
        temporal_strides: temporal stride of each stage; all 1 keeps T throughout.
        stem: replaces the stem described above: (N, 3, T, H, W) to (N, width, T, H/2, W/2).
        pool: adds a 3x3 max pool after the stem, which halves H and W again, as in 2D ResNets. An inflated 2D network needs
            it, and most published networks of bottlenecks have it.
        head_pool: replaces the average over time and space: (N, D, T, H, W) to (N, D), or (N, D, 1, 1, 1).
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[Block]],
        *,
        width: int = 64,
        temporal_strides: Sequence[int] = (1, 1, 1, 1),
        stem: nn.Sequential | None = None,
        pool: bool = False,
        head_pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem or stem_of(3, width)
        self.has_stem_pool = pool
        if pool:
            self.stem.append(stem_pool())
        channels = width
        stages: list[nn.Module] = []
        for number, types in enumerate(blocks):
            space = 1 if number == 0 else 2
            stage, channels = make_stage(types, channels, width << number, (temporal_strides[number], space, space))
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.feature_size = channels
        self.pool = head_pool or nn.AdaptiveAvgPool3d(1)
        initialize_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.pool(x).flatten(1)


def stem_of(frames: int, width: int) -> nn.Sequential:
    """A convolution of `frames` x 7 x 7, its batch norm and its ReLU: (N, 3, T, H, W) to (N, width, T, H/2, W/2)."""
    kernel = (frames, 7, 7)
    return nn.Sequential(
        Conv3d(3, width, kernel, stride=(1, 2, 2), padding=(frames // 2, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(True),
    )


def stem_pool() -> nn.MaxPool3d:
    """The 3x3 max pool after a stem, which halves H and W and keeps T."""
    return nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


def make_stage(blocks: Sequence[Block], channels_in: int, channels: int, stride: Strides) -> tuple[nn.Sequential, int]:
    """One stage of residual blocks, the first with the stride, and the number of its output channels."""
    parts: list[Residual] = []
    for number, block in enumerate(blocks):
        parts.append(block(channels_in, channels, stride if number == 0 else (1, 1, 1)))
        channels_in = parts[-1].channels_out
    return nn.Sequential(*parts), channels_in


def initialize_convolutions(backbone: nn.Module) -> None:
    """Initializes all convolutions as in He et al. 2015."""
    for module in backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def shortcut(channels_in: int, channels: int, stride: Strides) -> nn.Sequential | None:
    """A projection of (N, channels_in, T, H, W) to the shape of a block's result; None if the shapes are equal."""
    if channels_in == channels and stride == (1, 1, 1):
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm3d(channels))


def _conv(channels_in: int, channels: int, kernel: int, stride: Strides = (1, 1, 1)) -> Conv3d:
    return Conv3d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
