"""The baseline: a 2D ResNet (He et al. 2016) that processes each frame alone, and averages the features over time.

It cannot tell a clip from its time reversal, because only the order of a sum changes.
Letters: N clips, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv2d
from ssv2rt.models.residual import Residual
from ssv2rt.models.resnet3d import initialize_convolutions

Block2D = Callable[[int, int, int], Residual]
"""Builds a residual block from its input channels, the channels of its stage, and its stride."""


class BasicBlock2D(Residual):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        convolutions = (
            nn.Sequential(_conv(channels_in, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, channels, 3), nn.BatchNorm2d(channels)),
        )
        super().__init__(convolutions, _shortcut(channels_in, channels, stride), channels)


class Bottleneck2D(Residual):
    """A residual block of 1x1, 3x3 and 1x1 convolutions; the last has four times as many channels as the others."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        wide = 4 * channels
        convolutions = (
            nn.Sequential(_conv(channels_in, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU(True)),
            nn.Sequential(_conv(channels, wide, 1), nn.BatchNorm2d(wide)),
        )
        super().__init__(convolutions, _shortcut(channels_in, wide, stride), wide)


class ResNet2D(Backbone):
    """Normalized clips (N, 3, T, H, W) to features (N, D), the mean over the frames; D is `self.feature_size`."""

    def __init__(self, block: Block2D, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = width
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            parts: list[Residual] = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                parts.append(block(channels, width << stage, stride))
                channels = parts[-1].channels_out
            stages.append(nn.Sequential(*parts))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.feature_size = channels
        initialize_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # One mean over frames and pixels: of two, OpenVINO 2026.4 computes zeros in int8 for all clips but the first.
        return self._maps(x).mean((1, 3, 4))

    def frame_features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of each frame: (N, 3, T, H, W) to (N, T, D)."""
        return self._maps(x).mean((3, 4))

    def _maps(self, x: torch.Tensor) -> torch.Tensor:
        """The last maps of each frame: (N, 3, T, H, W) to (N, T, D, h, w)."""
        clips, frames = x.shape[0], x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1)  # (N T, 3, H, W)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return cast(torch.Tensor, x.unflatten(0, (clips, frames)))


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    if channels_in == channels and stride == 1:
        return None
    return nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))
