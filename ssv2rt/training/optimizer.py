"""The optimizer and the learning rate schedule."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ssv2rt.core.train_settings import Train

CONTINUED_SHARE = 0.1
"""Peak of the learning rate where a finished run was continued, as a share of that of the run."""


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW. Parameters of one dimension (biases and norms) get no weight decay.

    Each group of parameters has a `rate_factor`, which its learning rate is multiplied by, if `train.head_rate` is set.
    """
    groups = list(_parameter_groups(model, settings))
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )
    if settings.momentum:
        # In fp16, a fused optimizer skips a step whose gradients are infinite. PyTorch's fused SGD allocates the momentum
        # buffer at the first step, but fills it only if that step is not skipped. The second step would then use uninitialized
        # memory. A buffer that starts as zeros gives the same optimizer steps without this problem.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _parameter_groups(model: nn.Module, settings: Train) -> Iterator[dict[str, Any]]:
    """Parameters with and without weight decay; those of the classifier apart if they have another learning rate."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    of_head = [settings.head_rate != 1 and name.startswith("head.") for name, _ in named]
    for head in (False, True) if any(of_head) else (False,):
        chosen = [parameter for (_, parameter), of in zip(named, of_head, strict=True) if of == head]
        factor = {"rate_factor": settings.head_rate if head else 1.0} if any(of_head) else {}
        yield {"params": [p for p in chosen if p.ndim > 1], "weight_decay": settings.weight_decay, **factor}
        yield {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0, **factor}


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each optimizer step of a run."""

    settings: Train
    steps_per_epoch: int
    """Optimizer steps."""
    processes: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.settings.epochs * self.steps_per_epoch

    def __call__(self, step: int) -> float:
        """The learning rate after `step` optimizer steps, from 0 to one less than those of the run."""
        settings, per_epoch = self.settings, self.steps_per_epoch
        peak = scaled_learning_rate(settings, self.processes)
        parts = list(pairwise(epochs * per_epoch for epochs in (0, *settings.continued, settings.epochs)))
        start, end = parts[bisect.bisect([end for _, end in parts[:-1]], step)]
        if start:
            return learning_rate(step - start, steps=end - start, warmup=0, peak=CONTINUED_SHARE * peak)
        warmup = round(per_epoch * settings.warmup_epochs)
        if settings.schedule == "steps" and step >= warmup:
            return peak * settings.step_factor ** bisect.bisect(settings.step_epochs, step // per_epoch)
        return learning_rate(step, steps=end, warmup=warmup, peak=peak)


def scaled_learning_rate(settings: Train, processes: int) -> float:
    """The peak learning rate for a world size, scaled by `train.scale_rate`."""
    return settings.learning_rate * rate_scale(settings, processes)


def rate_scale(settings: Train, ratio: float) -> float:
    """Factor of the learning rate for `ratio` times as many clips in an optimizer step: linear, by square root, or 1."""
    return {"linear": float(ratio), "sqrt": math.sqrt(ratio), "none": 1.0}[settings.scale_rate]


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
