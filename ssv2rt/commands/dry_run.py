"""What `ssv2rt train --dry-run` says: what training would do and need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ssv2rt.core.hardware import Precision
    from ssv2rt.core.recipes import Recipe
    from ssv2rt.training.trainer import Trainer

SIDE = 1024
"""Rows and columns of the matrices whose product tells how fast a device computes."""
SECONDS = 0.3
"""How long products are timed."""


def plan_of(trainer: Trainer) -> dict[str, object]:
    """The figures of a trainer that is ready to begin."""
    from ssv2rt.training.batch_size import estimate_step_memory

    recipe, group, classes = trainer.recipe, trainer.group, len(trainer.manifest.labels)
    settings = recipe.train
    memory = estimate_step_memory(recipe, classes, trainer.precision)
    gflops = training_flops(recipe, classes) / 1e9
    optimizer_steps = settings.epochs * trainer.optimizer_steps_per_epoch
    left = optimizer_steps - trainer.optimizer_steps
    clips = left * settings.accumulate * settings.batch  # of each process
    rate = matrix_product_rate(group.device, trainer.precision)
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
        "GFLOP of a step, per clip": gflops,
        "GB of a step, without the allocator's own": memory.for_batch(settings.batch) / 1e9,
        "minutes at least, at the rate of matrix products": clips * gflops * 1e9 / rate / 60,
    }


def training_flops(recipe: Recipe, classes: int) -> float:
    """Multiplications and additions of one clip, forwards and backwards, counted without computing them."""
    import torch
    from torch.nn import functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from ssv2rt.models.clip_model import freeze_backbone
    from ssv2rt.models.registry import build_model
    from ssv2rt.models.residual import set_checkpointing

    batch, clip = 2, recipe.clip  # batch norm in training needs more than one clip
    with torch.device("meta"):
        model = build_model(recipe.model, classes).train()
        clips = torch.empty(batch, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        labels = torch.zeros(batch, dtype=torch.int64)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(clips), labels).backward()
    return counter.get_total_flops() / batch


def matrix_product_rate(device: torch.device, precision: Precision) -> float:
    """Multiplications and additions a second in a product of matrices, which training does not exceed."""
    import torch

    from ssv2rt.core.hardware import DTYPES

    side = SIDE * (8 if device.type == "cuda" else 1)
    matrix = torch.ones(side, side, dtype=DTYPES[precision], device=device)
    with torch.inference_mode():
        float((matrix @ matrix)[0, 0])  # the first one is slower
        products, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < SECONDS:
            float((matrix @ matrix)[0, 0])  # waits until it is computed
            products += 1
    return 2 * side**3 * products / seconds
