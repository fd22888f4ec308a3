"""The average over the last feature map as PyTorchVideo's networks have it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class WindowMean(nn.Module):
    """(N, C, T, H, W) to (N, C): the mean over all frames, and over all windows of 7x7 of the means in these windows.

    PyTorchVideo's networks are trained on crops of 224 pixels, whose last map is 7x7, and are tested on 256 pixels. There the
    map is 8x8, with 4 windows, so that the weights along each side are 1, 2, 2, 2, 2, 2, 2, 1 fourteenths. A map of up to 7x7
    is one window.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window = (min(7, x.shape[3]), min(7, x.shape[4]))
        return F.avg_pool2d(x.mean(2), window, stride=1).mean((2, 3))
