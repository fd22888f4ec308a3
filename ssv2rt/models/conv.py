"""Convolutions with workarounds for wrong gradients on CPUs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with a workaround for wrong weight gradients.

    In bf16 on a CPU, oneDNN (as of torch 2.13) leaves parts of the weight gradient uninitialized if the kernel has 3 or more
    frames and the input has 2. Such a layer is computed in fp32. It occurs in every network that halves 16 frames three
    times.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] == 2 and self.kernel_size[0] > 2 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a workaround for wrong weight gradients.

    On a CPU, oneDNN (as of torch 2.13) computes parts of the weight gradient wrong for a strided 1x1 kernel on fewer than 8
    channels in channels-last, as in the shortcuts of a very narrow ResNet. There, the input is subsampled before a
    convolution without stride.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel_size == (1, 1) and self.stride != (1, 1) and self.in_channels < 8 and x.device.type == "cpu":
            rows, columns = self.stride
            return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)
        return super().forward(x)
