"""The optimiser, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssv2rt.core.recipes import Train


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW. Biases and norms, the parameters of one dimension, do not decay."""
    decaying = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )
    if settings.momentum:
        # In fp16 the gradient scaler has a fused optimiser skip a step whose gradient is infinite. PyTorch's fused SGD takes
        # memory for the momentum at the first step and fills it only if that is not skipped, but believes it from the second
        # step on. Momentum that begins as zeros gives the same updates.
        for parameter in (*decaying, *others):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def scaled_rate(settings: Train, processes: int) -> float:
    """The peak rate for so many processes, whose batches add up to so many times as many clips."""
    factor = {"linear": float(processes), "sqrt": math.sqrt(processes), "none": 1.0}[settings.scale_rate]
    return settings.learning_rate * factor


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine to zero (Loshchilov and Hutter 2017).

    Args:
        step: changes of the weights made so far, 0..steps-1.
        steps: changes in the whole run.
        warmup: changes of the warm-up.
        peak: highest rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
