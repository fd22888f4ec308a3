"""`train.batch_size = "auto"`: finds the largest batch size that fits in memory and divides `train.update_clips`.

The memory of a training step is estimated with fake tensors, without running it. On a GPU, the estimate is then verified by
real steps, since cuDNN workspaces and allocator fragmentation cannot be estimated. On a CPU, the estimate is all there is.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from ssv2rt.core.errors import UserError, says_out_of_memory
from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.recipes import Recipe
from ssv2rt.models.clip_model import ClipModel, freeze_backbone
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import set_checkpointing
from ssv2rt.training.determinism import NO_CUDNN_ENGINE
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep

logger = logging.getLogger(__name__)


MAX_CPU_BATCH = 32
"""Largest batch size on a CPU, where larger batches bring no more throughput."""
CPU_SHARE, GPU_SHARE = 0.5, 0.85
"""Share of the free memory for training steps. The rest is for decoders, prefetched clips and, on a CPU, other programs."""


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step, in bytes."""

    fixed: float
    """Weights, gradients, optimizer state and EMA weights."""
    per_clip: float
    """Activations saved for the backward pass, for each clip of a batch."""

    def for_batch(self, batch: int) -> float:
        return self.fixed + batch * self.per_clip


def resolve_batch_size(
    recipe: Recipe, classes: int, precision: Precision, group: Group, *, limit: float | None = None
) -> Recipe:
    """Replaces batch size "auto" by a number, the same on all ranks, and sets `train.accumulate` to match.

    Args:
        recipe: returned unchanged if its batch size is already a number.
        classes: number of classes.
        precision: of the forward pass.
        group: this process's place among the processes that train together.
        limit: bytes that a step may use; by default a share of the free memory.

    Raises:
        UserError: not even a batch of one clip fits.
    """
    settings = recipe.train
    if settings.batch_size != "auto":
        return recipe
    limit = usable_memory(group.device) if limit is None else limit
    memory = estimate_step_memory(recipe, classes, precision)
    sizes = candidate_sizes(settings.update_clips, group.device)
    batch = next((size for size in sizes if memory.for_batch(size) <= limit), sizes[-1])
    if group.device.type == "cuda":
        batch = first_fitting(
            [size for size in sizes if size <= batch], lambda size: batch_fits(recipe, classes, precision, group, size)
        )
    elif memory.for_batch(batch) > limit:
        batch = 0
    batch = min(group.gather(batch))
    if not batch:
        raise UserError(
            f"train.batch_size = 'auto': one clip needs about {memory.for_batch(1) / 1e9:.1f} GB, and {limit / 1e9:.1f} GB "
            f"may be used; lower clip.size or clip.frames, set model.checkpointing, or give a number to try anyway"
        )
    accumulate = settings.update_clips // batch
    if group.is_rank_zero:
        logger.info(
            f"train.batch_size = {batch}: about {memory.for_batch(batch) / 1e9:.1f} GB of {limit / 1e9:.1f} GB that may be "
            f"used; train.accumulate = {accumulate}, for train.update_clips = {settings.update_clips}"
        )
    resolved = settings.model_copy(update={"batch_size": batch, "accumulate": accumulate})
    return recipe.model_copy(update={"train": resolved})


def candidate_sizes(update_clips: int, device: torch.device) -> list[int]:
    """Batch sizes that divide the clips of one optimizer step, largest first."""
    largest = update_clips if device.type == "cuda" else min(update_clips, MAX_CPU_BATCH)
    return [size for size in range(largest, 0, -1) if update_clips % size == 0]


def first_fitting(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """The first of `sizes` that fits, or 0 if none does."""
    return next((size for size in sizes if fits(size)), 0)


def estimate_step_memory(recipe: Recipe, classes: int, precision: Precision) -> StepMemory:
    """Estimates the memory of a training step without running it."""
    # Not of one clip, of which batch norm may have a single value per channel, and refuses it.
    two, three = (_saved_activation_bytes(recipe, classes, precision, batch) for batch in (2, 3))
    with torch.device("meta"):
        weights = 4 * sum(p.numel() for p in build_model(recipe.model, classes).parameters())
    copies = 2 + (2 if recipe.train.optimizer == "adamw" else 1) + bool(recipe.train.ema)
    return StepMemory(fixed=copies * weights + max(0.0, 3 * two - 2 * three), per_clip=three - two)


def usable_memory(device: torch.device) -> float:
    """Bytes that training may use: a share of the free memory of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _read_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (_read_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))  # limits of a container
    if limit and used and limit[0].isdecimal():
        free = min(free, int(limit[0]) - int(used[0]))
    return CPU_SHARE * free


def batch_fits(recipe: Recipe, classes: int, precision: Precision, group: Group, batch: int) -> bool:
    """Runs two training steps and returns whether they fit in the GPU memory that training may use.

    Two steps are needed, because the optimizer allocates its state in the first one.
    """
    device = group.device
    fits = True
    try:
        with _memory_limited(device):
            _run_two_steps(recipe, classes, precision, device, batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is a RuntimeError; cuDNN raises others
        if not (says_out_of_memory(error) or NO_CUDNN_ENGINE in str(error)):
            raise
        fits = False
    gc.collect()  # only here, since the traceback of the error keeps tensors alive
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _run_two_steps(recipe: Recipe, classes: int, precision: Precision, device: torch.device, batch: int) -> None:
    """Two steps like those of the trainer, on random clips, with a temporary network."""
    clip = recipe.clip
    settings = recipe.train.model_copy(update={"compile": False, "batch_size": batch, "accumulate": 1})
    model = build_network(recipe, classes).channels_last().to(device)
    training_step = TrainingStep(model.train(), settings, precision, Group(0, 1, device))
    for step in range(2):
        clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, device=device)
        labels = torch.arange(batch, device=device) % classes
        training_step.backward(clips, labels, epoch=1, step=step, last=True)
        training_step.optimizer_step(0.0, "trying a batch size")
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _memory_limited(device: torch.device) -> Iterator[None]:
    """Makes PyTorch raise an out-of-memory error above `GPU_SHARE` of the memory that is free now."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (GPU_SHARE * free + reserved) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def build_network(recipe: Recipe, classes: int) -> ClipModel:
    """The network with the recipe's settings for activation checkpointing and freezing, and with random weights."""
    model = build_model(recipe.model, classes)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    return model


def _saved_activation_bytes(recipe: Recipe, classes: int, precision: Precision, batch: int) -> int:
    """Bytes that autograd saves for the backward pass of a batch. Each storage counts once; parameters do not count."""
    clip = recipe.clip
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so that no address is used twice

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        model = build_network(recipe, classes).channels_last().train()
        parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        clips = torch.empty(batch, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        with (
            torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
            torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"),
        ):
            F.cross_entropy(model(clips).float(), torch.zeros(batch, dtype=torch.int64))
        return sum(storage.nbytes() for address, storage in saved.items() if address not in parameters)


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
