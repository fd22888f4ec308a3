"""C3D (Tran et al. 2015, https://arxiv.org/abs/1412.0767): eight 3x3x3 convolutions, five pools, two large linear layers.

The published network takes clips of 16x112x112 and has no batch norms. For these clips, and with `width` 64:

    conv1a 64, pool1 1x2x2 -> conv2a 128, pool2 -> conv3a, 3b 256, pool3 -> conv4a, 4b 512, pool4
    -> conv5a, 5b 512, pool5 -> (512, 1, 4, 4) -> fc6 4096 -> fc7 4096

All pools but pool1 are 2x2x2 max pools. Sizes that do not divide are rounded up, as in Caffe, so that the last 7 becomes 4.
Clips of other sizes are average-pooled to (1, 4, 4) before fc6.

Letters: N clips, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv3d

GRID = 4
"""H and W of the input of fc6; its T is 1."""


class C3D(Backbone):
    """Normalized clips (N, 3, T, H, W) to features (N, D); D is `self.feature_size`, 64 * width.

    Args:
        width: channels of the first convolution; all other layers scale with it.
        dropout: dropout probability between fc6 and fc7. The paper also has dropout after fc7, which is part of `ClipModel`.
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
        self.feature_size = 64 * width
        self.connected = nn.Sequential(
            nn.Linear(channels * GRID * GRID, self.feature_size),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(self.feature_size, self.feature_size),
            nn.ReLU(True),
        )
        for module in self.modules():
            # Without batch norms, the initialization of each layer must preserve the scale of the activations.
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolutions(x)
        if x.shape[2:] != (1, GRID, GRID):
            # Adaptive average pooling as matrix products, because ONNX export supports it only for sizes that divide.
            x = x.mean(2)
            x = _averaging_matrix(x.shape[2], x) @ x @ _averaging_matrix(x.shape[3], x).T  # (N, C, 4, 4)
        return cast(torch.Tensor, self.connected(x.flatten(1)))


def _averaging_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """(4, size): row i averages the positions from floor(i size / 4) to ceil((i + 1) size / 4), the end excluded."""
    rows = []
    for part in range(GRID):
        first, end = part * size // GRID, -(-(part + 1) * size // GRID)
        rows.append([1 / (end - first) if first <= place < end else 0.0 for place in range(size)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
