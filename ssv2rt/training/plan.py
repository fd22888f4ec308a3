"""What a training run would do and need: clips, optimizer steps, FLOPs, memory, and the least time. Nothing is trained."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.recipes import Recipe
from ssv2rt.training.batch_size import build_network, estimate_step_memory
from ssv2rt.training.trainer import Trainer

_MATRIX_SIZE, _SECONDS = 1024, 0.3
"""Rows and columns of the matrices (8 times as many on a GPU), and how long their products are timed."""


def training_plan(trainer: Trainer) -> dict[str, object]:
    """What a trainer would do from its current state, as figures with names to print."""
    recipe, group, classes = trainer.recipe, trainer.group, len(trainer.manifest.labels)
    settings = recipe.train
    memory = estimate_step_memory(recipe, classes, trainer.precision)
    flops = training_flops(recipe, classes)
    optimizer_steps = settings.epochs * trainer.optimizer_steps_per_epoch
    left = optimizer_steps - trainer.optimizer_steps
    clips = left * settings.accumulate * settings.batch  # of each process
    return {
        "model": recipe.model.name,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "classes": classes,
        "training clips": len(trainer.train_split),
        "validation clips": len(trainer.validation_split),
        "device": str(group.device) if group.size == 1 else f"{group.size} x {group.device.type}",
        "precision": trainer.precision,
        "batch": f"{settings.batch} clips x {settings.accumulate} accumulated x {group.size} processes",
        "epochs": settings.epochs,
        "optimizer steps per epoch": trainer.optimizer_steps_per_epoch,
        "optimizer steps": optimizer_steps,
        **({"optimizer steps left": left} if trainer.optimizer_steps else {}),
        "GFLOP of a step, per clip": flops / 1e9,
        "GB of a step, without the allocator's own": memory.for_batch(settings.batch) / 1e9,
        "hours at least, at the rate of matrix products": (
            clips * flops / matmul_flops_per_second(group.device, trainer.precision) / 3600
        ),
    }


def training_flops(recipe: Recipe, classes: int) -> float:
    """FLOPs (multiplications plus additions) of one clip, forward and backward, counted on the meta device."""
    batch, clip = 2, recipe.clip  # batch norm in training needs more than one clip
    with torch.device("meta"):
        model = build_network(recipe, classes).train()
        clips = torch.empty(batch, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        labels = torch.zeros(batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(clips), labels).backward()
    return counter.get_total_flops() / batch


def matmul_flops_per_second(device: torch.device, precision: Precision) -> float:
    """Measured FLOP/s of large matrix products, which training does not exceed."""
    size = _MATRIX_SIZE * (8 if device.type == "cuda" else 1)
    matrix = torch.ones(size, size, dtype=DTYPES[precision], device=device)
    with torch.inference_mode():
        float((matrix @ matrix)[0, 0])  # warm-up
        products, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < _SECONDS:
            float((matrix @ matrix)[0, 0])  # waits for the result
            products += 1
    return 2 * size**3 * products / seconds
