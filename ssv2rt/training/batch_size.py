"""`train.batch_size = "auto"`: the largest batch that fits into memory, of those that divide an update of the weights.

What a step keeps is counted on tensors without memory, which takes no arithmetic. On a GPU the batch is then tried: what
cuDNN wants beside it, and what the allocator loses, cannot be counted. On a CPU the count has to do.
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

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.recipes import Recipe
from ssv2rt.models.clip_model import ClipModel, freeze_backbone
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import set_checkpointing
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep

logger = logging.getLogger(__name__)


MOST_ON_CPU = 32
"""Clips. More do not make a CPU faster."""
CPU_SHARE, GPU_SHARE = 0.5, 0.85
"""Of the memory that is free. The rest is for decoders and for clips that are made ahead, and on a CPU for everybody."""
_FULL = ("out of memory", "ALLOC_FAILED", "unable to find an engine")
"""How PyTorch and cuDNN say that memory is short."""


@dataclass(frozen=True)
class Need:
    """Bytes of a training step."""

    fixed: float
    """Weights, their gradients, and what the optimiser and the running average keep."""
    clip: float
    """Of each clip of a batch, on its way to the loss and back."""

    def of(self, batch: int) -> float:
        return self.fixed + batch * self.clip


def with_batch_size(
    recipe: Recipe, classes: int, precision: Precision, group: Group, *, limit: float | None = None
) -> Recipe:
    """The recipe with a number for "auto", the same in all processes, and with the `accumulate` that goes with it.

    Args:
        recipe: returned as it is if it has a number.
        classes: of the network.
        precision: of the arithmetic.
        group: the processes that train together.
        limit: bytes that a step may take; by default a share of what is free.

    Raises:
        UserError: not even one clip fits.
    """
    settings = recipe.train
    if settings.batch_size != "auto":
        return recipe
    limit = free_memory(group.device) if limit is None else limit
    need = count_need(recipe, classes, precision)
    sizes = candidates(settings.update_clips, group.device)
    batch = next((size for size in sizes if need.of(size) <= limit), sizes[-1])
    if group.device.type == "cuda":
        batch = largest(
            [size for size in sizes if size <= batch], lambda size: steps_fit(recipe, classes, precision, group, size)
        )
    elif need.of(batch) > limit:
        batch = 0
    batch = min(group.gather(batch))
    if not batch:
        raise UserError(
            f"train.batch_size = 'auto': one clip needs about {need.of(1) / 1e9:.1f} GB, and {limit / 1e9:.1f} GB may be "
            f"used; lower clip.size or clip.frames, set model.checkpointing, or give a number to try all the same"
        )
    accumulate = settings.update_clips // batch
    if group.first:
        logger.info(
            f"train.batch_size = {batch}: about {need.of(batch) / 1e9:.1f} GB of {limit / 1e9:.1f} GB that may be used; "
            f"train.accumulate = {accumulate}, for train.update_clips = {settings.update_clips}"
        )
    found = settings.model_copy(update={"batch_size": batch, "accumulate": accumulate})
    return recipe.model_copy(update={"train": found})


def candidates(update: int, device: torch.device) -> list[int]:
    """Batch sizes that make whole updates of so many clips, the largest first."""
    most = update if device.type == "cuda" else min(update, MOST_ON_CPU)
    return [size for size in range(most, 0, -1) if update % size == 0]


def largest(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """The first size that fits; 0 if none does."""
    return next((size for size in sizes if fits(size)), 0)


def count_need(recipe: Recipe, classes: int, precision: Precision) -> Need:
    """What a training step keeps, counted without making it."""
    one, two = (_kept(recipe, classes, precision, batch) for batch in (1, 2))
    with torch.device("meta"):
        weights = 4 * sum(p.numel() for p in build_model(recipe.model, classes).parameters())
    copies = 2 + (2 if recipe.train.optimizer == "adamw" else 1) + bool(recipe.train.ema)
    return Need(fixed=copies * weights + max(0.0, 2 * one - two), clip=two - one)


def free_memory(device: torch.device) -> float:
    """Bytes that training may use."""
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))  # of a container
    if limit and used and limit[0].isdecimal():
        free = min(free, int(limit[0]) - int(used[0]))
    return CPU_SHARE * free


def steps_fit(recipe: Recipe, classes: int, precision: Precision, group: Group, batch: int) -> bool:
    """Whether two steps of a batch fit into the share of a GPU's memory that training may use.

    Two, for the optimiser makes its state in the first one.
    """
    device = group.device
    fits = True
    try:
        with _bounded(device):
            _two_steps(recipe, classes, precision, device, batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and cuDNN has others
        if not any(sign in str(error) for sign in _FULL):
            raise
        fits = False
    gc.collect()  # not before: the error holds on to what did fit
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _two_steps(recipe: Recipe, classes: int, precision: Precision, device: torch.device, batch: int) -> None:
    """What the trainer does, on random clips, with a network that is then thrown away."""
    clip = recipe.clip
    settings = recipe.train.model_copy(update={"compile": False, "batch_size": batch, "accumulate": 1})
    model = _network(recipe, classes).channels_last().to(device)
    training_step = TrainingStep(model.train(), settings, precision, Group(0, 1, device))
    for step in range(2):
        clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, device=device)
        labels = torch.arange(batch, device=device) % classes
        training_step.backward(clips, labels, epoch=1, step=step, last=True)
        training_step.update(0.0, "trying a batch size")
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _bounded(device: torch.device) -> Iterator[None]:
    """PyTorch refuses more than `GPU_SHARE` of what is free now, as if the GPU were that small."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (GPU_SHARE * free + held) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _network(recipe: Recipe, classes: int) -> ClipModel:
    """As training has it, with any weights."""
    model = build_model(recipe.model, classes)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    return model


def _kept(recipe: Recipe, classes: int, precision: Precision, batch: int) -> int:
    """Bytes that autograd keeps of a batch, without the parameters; each tensor counts once."""
    clip = recipe.clip
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        model = _network(recipe, classes).channels_last().train()
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        clips = torch.empty(batch, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"),
        ):
            F.cross_entropy(model(clips).float(), torch.zeros(batch, dtype=torch.int64))
        return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
