"""I3D: Inception-v1 with 3D filters and pools (Carreira and Zisserman 2017, https://arxiv.org/abs/1705.07750).

    7x7x7 /2 64, pool 1x3x3 /(1,2,2), 1x1x1 64, 3x3x3 192, pool 1x3x3 /(1,2,2), mixed_3b, 3c, pool 3x3x3 /2,
    mixed_4b, 4c, 4d, 4e, 4f, pool 2x2x2 /2, mixed_5b, 5c -> 1024 features

Padding is TensorFlow's "same": a layer of stride s turns a size n into ceil(n / s), and if the number of padding zeros is
odd, the extra one is at the end. A clip of 16x224x224 becomes 2x7x7, and the features are the average over all of it. (The
paper first averages over pairs of neighboring time steps, which gives the same result for 16 frames.)

Letters: N clips, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv3d
from ssv2rt.models.resnet3d import Strides, initialize_convolutions

# Channels of the 1x1x1 branch; before and after each of the two 3x3x3 convolutions; after the pool.
MIXED = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3D(Backbone):
    """Normalized clips (N, 3, T, H, W) to features (N, D); D is `self.feature_size`, 16 * width.

    Args:
        width: channels of the first convolution, 64 in the paper; all other layers scale with it.
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width / 64))

        self.stem = nn.Sequential(
            _conv_bn_relu(3, width, 7, stride=2),
            SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            _conv_bn_relu(width, width, 1),
            _conv_bn_relu(width, scaled(192), 3),
        )
        channels = scaled(192)
        self.stages = nn.Sequential()
        pools = {
            "mixed_3b": SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            "mixed_4b": SameMaxPool3d((3, 3, 3), (2, 2, 2)),
            "mixed_5b": SameMaxPool3d((2, 2, 2), (2, 2, 2)),
        }
        for name, published in MIXED.items():
            if name in pools:
                self.stages.add_module(f"before_{name}", pools[name])
            mixed = Mixed(channels, tuple(map(scaled, published)))
            self.stages.add_module(name, mixed)
            channels = mixed.channels_out
        self.feature_size = channels
        self.pool = nn.AdaptiveAvgPool3d(1)
        initialize_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.stages(self.stem(x))).flatten(1)


class Mixed(nn.Module):
    """An Inception block of four parallel branches: (N, C, T, H, W) to (N, `channels_out`, T, H, W)."""

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        alone, into_first, first, into_second, second, pooled = channels
        self.alone = _conv_bn_relu(channels_in, alone, 1)
        self.first = nn.Sequential(_conv_bn_relu(channels_in, into_first, 1), _conv_bn_relu(into_first, first, 3))
        self.second = nn.Sequential(_conv_bn_relu(channels_in, into_second, 1), _conv_bn_relu(into_second, second, 3))
        self.pooled = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), _conv_bn_relu(channels_in, pooled, 1))
        self.channels_out = alone + first + second + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.alone(x), self.first(x), self.second(x), self.pooled(x)), 1)


class SameConv3d(Conv3d):
    """A convolution with "same" padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride))


class SameMaxPool3d(nn.Module):
    """A max pool with "same" padding. Its input comes from a ReLU, so that padding with zeros does not change the maximum."""

    def __init__(self, kernel: Strides, stride: Strides) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


def pad_same(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """Pads (N, C, T, H, W) with zeros, so that a size n becomes ceil(n / s); an odd zero goes to the end."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        pads = [total // 2, total - total // 2, *pads]  # F.pad takes the last dimension first
    return F.pad(x, pads) if any(pads) else x


def _conv_bn_relu(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm (with TensorFlow's epsilon) and a ReLU."""
    if stride == 1:  # kernels are odd, so "same" padding is symmetric
        conv = Conv3d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
    else:
        conv = SameConv3d(channels_in, channels, kernel, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(channels, eps=1e-3), nn.ReLU(True))
