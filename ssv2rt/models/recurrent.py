"""A 2D ResNet on every frame, and something behind it that knows their order.

LSTM and GRU: as in Donahue et al. 2015 (https://arxiv.org/abs/1411.4389), the features of the frames are read one after
the other; what is remembered after the last is the feature of the clip. Late fusion: as in Karpathy et al. 2014
(https://research.google/pubs/large-scale-video-classification-with-convolutional-neural-networks/), the features of the
first and of the last frame are put side by side into a fully connected layer; no frame in between is looked at.

Module names are those of the 2D ResNet, so that its weights fit. Letters: N clips, T frames, H height, W width,
C channels of the 2D network, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ssv2rt.models.resnet2d import Block2D, ResNet2D

LARGEST = 512
"""D is C, and no more than this: a recurrent layer of 2048 would be larger than the network before it."""


class RecurrentResNet2D(ResNet2D):
    """Normalised clips (N, 3, T, H, W) to features (N, D), the last hidden state.

    Args:
        block, depths, width: those of the 2D network.
        cell: nn.LSTM or nn.GRU.
    """

    def __init__(
        self, block: Block2D, depths: Sequence[int], *, cell: type[nn.LSTM] | type[nn.GRU], width: int = 64
    ) -> None:
        super().__init__(block, depths, width=width)
        channels, self.width_out = self.width_out, min(self.width_out, LARGEST)
        self.recurrent = cell(channels, self.width_out, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.frame_features(x))  # (N, T, D)
        return cast(torch.Tensor, states[:, -1])


class LateFusionResNet2D(ResNet2D):
    """Normalised clips (N, 3, T, H, W) to features (N, D), from the first and the last frame."""

    def __init__(self, block: Block2D, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__(block, depths, width=width)
        channels, self.width_out = self.width_out, min(self.width_out, LARGEST)
        self.fusion = nn.Sequential(nn.Linear(2 * channels, self.width_out), nn.ReLU(True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.stack((x[:, :, 0], x[:, :, -1]), 2)  # (N, 3, 2, H, W)
        return cast(torch.Tensor, self.fusion(self.frame_features(ends).flatten(1)))
