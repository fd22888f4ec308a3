"""A 2D ResNet on every frame, followed by a layer that depends on the order of the frames.

LSTM and GRU (Donahue et al. 2015, https://arxiv.org/abs/1411.4389): a recurrent layer reads the features of the frames, and
its last hidden state is the feature of the clip. Late fusion (Karpathy et al. 2014,
https://research.google/pubs/large-scale-video-classification-with-convolutional-neural-networks/): the features of the first
and the last frame are concatenated for a fully connected layer. The frames between them are not used.

Module names are those of the 2D ResNet, so that its weights can be loaded. Letters: N clips, T frames, H height, W width,
C channels of the 2D network, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ssv2rt.models.resnet2d import Block2D, ResNet2D

MAX_FEATURES = 512
"""D is C, but at most this: a recurrent layer of 2048 features would be larger than the 2D network."""


class RecurrentResNet2D(ResNet2D):
    """Normalized clips (N, 3, T, H, W) to features (N, D), the last hidden state.

    Args:
        block, depths, width: the same as in `ResNet2D`.
        cell: nn.LSTM or nn.GRU.
    """

    def __init__(
        self, block: Block2D, depths: Sequence[int], *, cell: type[nn.LSTM] | type[nn.GRU], width: int = 64
    ) -> None:
        super().__init__(block, depths, width=width)
        channels, self.feature_size = self.feature_size, min(self.feature_size, MAX_FEATURES)
        self.recurrent = cell(channels, self.feature_size, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.frame_features(x))  # (N, T, D)
        return cast(torch.Tensor, states[:, -1])


class LateFusionResNet2D(ResNet2D):
    """Normalized clips (N, 3, T, H, W) to features (N, D), from the first and the last frame."""

    def __init__(self, block: Block2D, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__(block, depths, width=width)
        channels, self.feature_size = self.feature_size, min(self.feature_size, MAX_FEATURES)
        self.fusion = nn.Sequential(nn.Linear(2 * channels, self.feature_size), nn.ReLU(True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.stack((x[:, :, 0], x[:, :, -1]), 2)  # (N, 3, 2, H, W)
        return cast(torch.Tensor, self.fusion(self.frame_features(ends).flatten(1)))
