"""C3D (Tran et al. 2015, https://arxiv.org/abs/1412.0767): eight 3x3x3 convolutions, five pools, two large layers.

The published network sees 16x112x112 and has no batch norms. There, with `width` 64:

    conv1a 64, pool1 1x2x2 -> conv2a 128, pool2 -> conv3a, 3b 256, pool3 -> conv4a, 4b 512, pool4
    -> conv5a, 5b 512, pool5 -> (512, 1, 4, 4) -> fc6 4096 -> fc7 4096

Pools take the maximum of 2x2x2, and round up what does not divide, as Caffe does: that makes 4 of the last 7. Clips of
any other size are averaged to (1, 4, 4) before fc6.

Letters: N clips, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv3d

GRID = 4
"""H and W that fc6 sees, at one T."""


class C3D(Backbone):
    """Normalised clips (N, 3, T, H, W) to features (N, D); D is `self.width_out`, 64 * width.

    Args:
        width: channels of the first convolution; all other layers scale with it.
        dropout: between fc6 and fc7, in training. The paper has 0.5 there and behind fc7; the latter is `ClipModel`'s.
    """

    def __init__(self, *, width: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        stages = ((1,), (2,), (4, 4), (8, 8), (8, 8))
        layers: list[nn.Module] = []
        channels = 3
        for number, stage in enumerate(stages):
            for times in stage:
                layers += [Conv3d(channels, times * width, 3, padding=1), nn.ReLU(True)]
                channels = times * width
            layers.append(nn.MaxPool3d((1, 2, 2) if number == 0 else 2, ceil_mode=True))
        self.convolutions = nn.Sequential(*layers)
        self.width_out = 64 * width
        self.connected = nn.Sequential(
            nn.Linear(channels * GRID * GRID, self.width_out),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(self.width_out, self.width_out),
            nn.ReLU(True),
        )
        for module in self.modules():
            # Nothing sets the scale between the layers, so that each has to keep it.
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(x)
        if x.shape[2:] != (1, GRID, GRID):
            # Adaptive average pooling as products of matrices, since ONNX knows it only where sizes divide.
            x = x.mean(2)
            x = _averages(x.shape[2], x) @ x @ _averages(x.shape[3], x).T  # (N, C, 4, 4)
        return cast(torch.Tensor, self.connected(x.flatten(1)))


def _averages(size: int, like: torch.Tensor) -> torch.Tensor:
    """(4, size): row i has the average from floor(i size / 4) to ceil((i + 1) size / 4)."""
    rows = []
    for part in range(GRID):
        first, end = part * size // GRID, -(-(part + 1) * size // GRID)
        rows.append([1 / (end - first) if first <= place < end else 0.0 for place in range(size)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
