"""SlowFast: a pathway that sees few frames, and a narrow one that sees all (Feichtenhofer et al. 2019,
https://arxiv.org/abs/1812.03982).

    fast, T frames      stem 5x7x7 -> layer1 -> layer2 -> layer3 -> layer4 -> mean --+
                          |             |         |         |                        +-> (N, 2304)
                       lateral[0]   lateral[1]  [2]       [3]                        |
                          v             v         v         v                        |
    slow, T/4 frames    stem 1x7x7 -> layer1 -> layer2 -> layer3 -> layer4 -> mean --+

Each lateral connection is a convolution of (7, 1, 1) with a temporal stride of 4, whose result is concatenated to the channels
of the slow pathway. The names and figures are those of SlowFast-R50 8x8, whose clips have 32 frames.

Letters: N clips, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssv2rt.models.clip_model import Backbone
from ssv2rt.models.conv import Conv3d
from ssv2rt.models.factorized import temporal_bottleneck
from ssv2rt.models.pooling import WindowMean
from ssv2rt.models.resnet3d import initialize_convolutions, make_stage, stem_of, stem_pool

ALPHA = 4
"""The fast pathway has this many times the frames of the slow one."""
BETA = 8
"""The slow pathway has this many times the channels of the fast one, which has at least `LEAST`."""
LEAST = 4
SLOW_KERNELS = (1, 1, 3, 3)
"""Frames of the temporal convolutions of each stage of the slow pathway. In the fast pathway, all have 3."""


class SlowFast(Backbone):
    """Normalized clips (N, 3, T, H, W) to features (N, D); D is `self.feature_size`, 36 * width if width is 32 or more.

    The slow pathway takes T / 4 of the frames, rounded up, from the first to the last.

    Args:
        depths: the number of residual blocks in each stage.
        width: channels after the stem of the slow pathway.
    """

    def __init__(self, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        narrow = max(LEAST, width // BETA)
        self.slow, self.fast = nn.ModuleDict(), nn.ModuleDict()
        self.slow["stem"] = stem_of(1, width).append(stem_pool())
        self.fast["stem"] = stem_of(5, narrow).append(stem_pool())
        self.lateral = nn.ModuleList([_lateral(narrow)])
        slow, fast = width, narrow
        for number, depth in enumerate(depths):
            stride = (1, 1, 1) if number == 0 else (1, 2, 2)
            name, kernel = f"layer{number + 1}", SLOW_KERNELS[number]
            blocks = (temporal_bottleneck(kernel),) * depth
            self.slow[name], slow = make_stage(blocks, slow + 2 * fast, width << number, stride)
            self.fast[name], fast = make_stage((temporal_bottleneck(3),) * depth, fast, narrow << number, stride)
            if number + 1 < len(depths):
                self.lateral.append(_lateral(fast))
        self.pool = WindowMean()
        self.feature_size = slow + fast
        initialize_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Concatenated slices, unlike an index, keep the memory format.
        slow = torch.cat([x[:, :, number : number + 1] for number in slow_frames(x.shape[2])], 2)
        fast = x
        for number, name in enumerate(self.slow):
            slow, fast = self.slow[name](slow), self.fast[name](fast)
            if number < len(self.lateral):
                slow = torch.cat((slow, self.lateral[number](fast)), 1)
        return torch.cat((self.pool(slow), self.pool(fast)), 1)


def slow_frames(frames: int) -> list[int]:
    """The frames that the slow pathway takes: evenly spaced and rounded down, from the first to the last.

    Of 32 frames 0, 4, 8, 13, 17, 22, 26 and 31, as in PyTorchVideo.
    """
    count = -(-frames // ALPHA)
    return [number * (frames - 1) // max(1, count - 1) for number in range(count)]


def _lateral(channels: int) -> nn.Sequential:
    """(N, channels, T, H, W) of the fast pathway to (N, 2 * channels, T / 4, H, W), T / 4 rounded up."""
    return nn.Sequential(
        Conv3d(channels, 2 * channels, (7, 1, 1), stride=(ALPHA, 1, 1), padding=(3, 0, 0), bias=False),
        nn.BatchNorm3d(2 * channels),
        nn.ReLU(True),
    )
