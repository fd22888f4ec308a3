"""SyncBatchNorm for GPUs and CPUs: batch norm with statistics over the batches of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def convert_sync_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm layer of a model by a synchronized one; names and shapes in the state dict stay the same.

    PyTorch's own SyncBatchNorm works on GPUs only (2.13 refuses CPU tensors). On a CPU, the `SyncBatchNorm` of this module
    takes its place, so that training by several processes is the same, and is tested, on machines without GPUs.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            shared = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(model, name, shared)
        else:
            convert_sync_batch_norm(child, device)
    return model


class SyncBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) over all processes of the default process group, on a CPU (Ioffe and Szegedy 2015)."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        x = input.float()
        reduced_dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _AllReduce.apply(torch.cat([x.sum(reduced_dims), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centered = x - mean.view(shape)
        variance = _AllReduce.apply(centered.square().sum(reduced_dims)) / count
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            # Without a momentum, the mean of all batches, as in PyTorch's batch norms.
            momentum = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum of a tensor over all processes. Its gradient is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _AllReduce.forward(context, gradient)
