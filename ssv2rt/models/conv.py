"""Convolutions with workarounds for wrong gradients and a slow algorithm on CPUs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with workarounds for wrong weight gradients, and for a slow algorithm in training.

    In bf16 on a CPU, oneDNN (as of torch 2.13) leaves parts of the weight gradient uninitialized if the kernel has 3 or more
    frames and the input has 2. Such a layer is computed in fp32. It occurs in every network that halves 16 frames three
    times.

    With one thread, PyTorch computes a kernel of 1 pixel in space on fewer than 16 clips in fp32 by `slow_conv3d`, not by
    oneDNN. That takes 2 to 3 times as long and gives up channels-last. It does not where there is a dilation, which for
    one pixel means nothing.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            not torch.compiler.is_compiling()  # it cannot trace the number of threads
            and self.kernel_size[1:] == (1, 1)
            and self.training
            and len(x) < 16
            and x.device.type == "cpu"
            and torch.get_num_threads() == 1
            and not torch.is_autocast_enabled("cpu")
        ):
            return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, (self.dilation[0], 2, 2), self.groups)
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
