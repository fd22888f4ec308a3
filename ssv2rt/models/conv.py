"""The 3D convolution of this package's networks."""

from __future__ import annotations

import torch
from torch import nn


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with a way around a wrong gradient.

    In bf16 on a CPU, oneDNN (as of torch 2.13) leaves parts of the weight's gradient unwritten where a kernel of 3 or
    more in time meets an input of 2 frames: the result is whatever was in memory. Such a layer is computed in fp32. It
    is met by any network that halves 16 frames three times.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] == 2 and self.kernel_size[0] > 2 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)
