"""The optimizer and the learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssv2rt.core.train_settings import Train


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW. Parameters of one dimension (biases and norms) get no weight decay."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    not_decayed = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )
    if settings.momentum:
        # In fp16, a fused optimizer skips a step whose gradients are infinite. PyTorch's fused SGD allocates the momentum
        # buffer at the first step, but fills it only if that step is not skipped. The second step would then use uninitialized
        # memory. A buffer that starts as zeros gives the same optimizer steps without this problem.
        for parameter in (*decayed, *not_decayed):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def scaled_learning_rate(settings: Train, processes: int) -> float:
    """The peak learning rate for a world size, scaled by `train.scale_rate`: linear, by square root, or not at all."""
    factor = {"linear": float(processes), "sqrt": math.sqrt(processes), "none": 1.0}[settings.scale_rate]
    return settings.learning_rate * factor


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine to zero (Loshchilov and Hutter 2017).

    Args:
        step: optimizer steps done so far, 0..steps-1.
        steps: optimizer steps of the whole run.
        warmup: optimizer steps of the warm-up.
        peak: highest learning rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
