"""ResNet with 3D convolutions throughout (Tran et al. 2018, https://arxiv.org/abs/1711.11248; Hara et al. 2018).

Stem: Conv3d(3, 64, (3, 7, 7), stride (1, 2, 2)), so time is kept and space halved. Four stages of residual blocks,
with spatial strides 1, 2, 2, 2 and temporal strides to choose. Average over time and space.
Module names are those of torchvision's video ResNets, so that published weights fit.

Letters: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssv2rt.models.conv import Conv3d

Strides = tuple[int, int, int]
"""Over time, height and width."""


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(_conv(channels_in, channels, 3, stride), nn.BatchNorm3d(channels), nn.ReLU(True))
        self.conv2 = nn.Sequential(_conv(channels, channels, 3), nn.BatchNorm3d(channels))
        self.downsample = _shortcut(channels_in, channels, stride)
        self.relu = nn.ReLU(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3, 1x1x1 beside a shortcut; four times as many channels leave as the middle has."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: Strides) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Sequential(_conv(channels_in, channels, 1), nn.BatchNorm3d(channels), nn.ReLU(True))
        self.conv2 = nn.Sequential(_conv(channels, channels, 3, stride), nn.BatchNorm3d(channels), nn.ReLU(True))
        self.conv3 = nn.Sequential(_conv(channels, wide, 1), nn.BatchNorm3d(wide))
        self.downsample = _shortcut(channels_in, wide, stride)
        self.relu = nn.ReLU(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class ResNet3D(nn.Module):
    """Normalised clips (N, 3, T, H, W) to features (N, D); D is `self.width_out`.

    Args:
        block: the residual block.
        depths: blocks in each of the four stages.
        width: channels after the stem.
        temporal_strides: stride in time of each stage; all 1 keeps T to the end.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        width: int = 64,
        temporal_strides: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(True),
        )
        channels = width
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            planes = width << stage
            space = 1 if stage == 0 else 2
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = (temporal_strides[stage], space, space) if number == 0 else (1, 1, 1)
                blocks.append(block(channels, planes, stride))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.width_out = channels
        self.pool = nn.AdaptiveAvgPool3d(1)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.pool(x).flatten(1)


def initialise(backbone: nn.Module) -> None:
    """He et al. 2015, for convolutions."""
    for module in backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _conv(channels_in: int, channels: int, kernel: int, stride: Strides = (1, 1, 1)) -> Conv3d:
    return Conv3d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(channels_in: int, channels: int, stride: Strides) -> nn.Sequential | None:
    if channels_in == channels and stride == (1, 1, 1):
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm3d(channels))
