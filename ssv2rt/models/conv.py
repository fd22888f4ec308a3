"""The convolutions of this package's networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


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


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, with a way around a wrong gradient.

    On a CPU, oneDNN (as of torch 2.13) gets parts of the weight's gradient wrong where a 1x1 kernel with a stride meets
    fewer than 8 channels in channels-last: the shortcuts of a very narrow ResNet. There the stride is taken first.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel_size == (1, 1) and self.stride != (1, 1) and self.in_channels < 8 and x.device.type == "cpu":
            rows, columns = self.stride
            return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)
        return super().forward(x)
