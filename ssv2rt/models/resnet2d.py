"""The baseline: a 2D ResNet (He et al. 2016) that looks at each frame alone, and averages over time.

Reversing the frames changes nothing but the order of a sum, so that two clips which are each other's time reversal are
one and the same to it. Letters: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssv2rt.models.resnet3d import initialise


class BasicBlock2D(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(_conv(channels_in, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU(True))
        self.conv2 = nn.Sequential(_conv(channels, channels, 3), nn.BatchNorm2d(channels))
        self.downsample = _shortcut(channels_in, channels, stride)
        self.relu = nn.ReLU(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class Bottleneck2D(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Sequential(_conv(channels_in, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(True))
        self.conv2 = nn.Sequential(_conv(channels, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU(True))
        self.conv3 = nn.Sequential(_conv(channels, wide, 1), nn.BatchNorm2d(wide))
        self.downsample = _shortcut(channels_in, wide, stride)
        self.relu = nn.ReLU(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class ResNet2D(nn.Module):
    """Normalised clips (N, 3, T, H, W) to features (N, D), the mean over the frames; D is `self.width_out`."""

    def __init__(
        self, block: type[BasicBlock2D] | type[Bottleneck2D], depths: Sequence[int], *, width: int = 64
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = width
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            planes = width << stage
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(channels, planes, stride))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.width_out = channels
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clips, frames = x.shape[0], x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1)  # (N T, 3, H, W)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return x.mean((2, 3)).unflatten(0, (clips, frames)).mean(1)


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    if channels_in == channels and stride == 1:
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))
