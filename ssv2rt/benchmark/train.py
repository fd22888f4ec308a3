"""How fast training is: fed by the loader, beside the same step on a batch that lies ready, and beside a plain loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.benchmark.rounds import machine, now, race
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, Precision, choose_device, choose_precision, versions
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import train_batches
from ssv2rt.training.determinism import set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep

logger = logging.getLogger(__name__)


FED = "fed by the loader"
RESIDENT = "the batch lies ready"
PLAIN = "plain loop, fp32, contiguous"
MATMUL = "matrix product"


RECIPE = "ssv2-resnet3d18"


def small_enough() -> tuple[str, ...]:
    """Changes to `RECIPE` with which a machine without a GPU can be measured in minutes."""
    if choose_device().type == "cuda":
        return ()
    return ("clip.size=112", "train.batch_size=4", "train.accumulate=1")


@dataclass
class Waiting:
    """What the steps that were fed by the loader have spent their time on, in seconds."""

    waited: float = 0.0
    total: float = 0.0


def benchmark_train(recipe: Recipe, manifest: Manifest, *, steps: int, rounds: int) -> dict[str, Any]:
    """Clips per second of training, memory, arithmetic, and the share of what the machine can do.

    Args:
        recipe: the network, the clips and the step; nothing is saved.
        manifest: its training clips are used, over and over.
        steps: in a turn.
        rounds: timed ones.

    Raises:
        UserError: the data has fewer training clips than a batch, or those cannot be decoded.
    """
    device = choose_device()
    precision = choose_precision(recipe.train.precision, device)
    split = manifest.split("train", recipe.data.max_bad)
    batch = recipe.train.batch
    if len(split) < batch:
        raise UserError(
            f"{len(split)} training clips do not fill a batch of {batch}; lower it with --set train.batch_size={len(split)}"
        )
    set_deterministic(recipe.train.deterministic)
    torch.manual_seed(recipe.train.seed)
    training_step = TrainingStep(
        _network(recipe, manifest).channels_last().to(device), recipe.train, precision, Group(0, 1, device)
    )
    training_step.model.train()
    loader = ClipLoader(
        clip=recipe.clip.one_view(),
        batch=batch,
        data=recipe.data,
        device=device,
        augment=recipe.augment.has_pixel_augment,
        measured=None if recipe.train.deterministic else logger.info,
    )
    ready = next(_feed(loader, recipe, split))
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        forwards = _flops(lambda: training_step.model(ready.clips))
    flops = _flops(lambda: _step(training_step, ready))
    memory = peak_memory(training_step, ready)
    waiting = Waiting()
    product = MatrixProduct(device, precision)
    rates = race(
        {
            FED: lambda: _fed(training_step, _feed(loader, recipe, split), steps, waiting),
            RESIDENT: lambda: _steps(training_step, ready, steps),
            PLAIN: _plain(_network(recipe, manifest).to(device), ready, recipe, steps),
            MATMUL: product.turn,
        },
        units=steps * batch,
        rounds=rounds,
    )
    peak = rates.pop(MATMUL).high / (steps * batch) * product.flops
    achieved = rates[RESIDENT].median / batch * flops
    return {
        "model": recipe.model.name,
        "clip": f"{recipe.clip.frames} x {recipe.clip.size} x {recipe.clip.size}",
        "batch": batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "share_of_resident": rates[FED].median / rates[RESIDENT].median,
        "times_plain": rates[FED].median / rates[PLAIN].median,
        "waiting_for_data": waiting.waited / max(1e-9, waiting.total),
        "peak_memory": memory,
        "gflop_forwards": forwards / 1e9,
        "gflop_per_step": flops / 1e9,
        "gflop_per_second": achieved / 1e9,
        "matrix_product_gflop_per_second": peak / 1e9,
        "share_of_matrix_product": achieved / peak,
        "machine": machine(),
        "versions": versions(),
    }


class MatrixProduct:
    """Products of two square matrices in the arithmetic of training: the most that the machine gives."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        size, self._repeats = (8192, 20) if device.type == "cuda" else (2048, 4)
        self._pair = torch.randn(2, size, size, device=device).to(DTYPES[precision])
        self.flops = 2 * size**3 * self._repeats
        """Of a turn."""

    def turn(self) -> float:
        """Seconds of one turn."""
        a, b = self._pair
        start = now(a.device)
        for _ in range(self._repeats):
            a @ b
        return now(a.device) - start


def _network(recipe: Recipe, manifest: Manifest) -> ClipModel:
    return build_model(recipe.model, len(manifest.labels))


def _feed(loader: ClipLoader, recipe: Recipe, split: Split) -> Iterator[ClipBatch]:
    """Batches without end, with nothing read or decoded ahead yet."""
    requests = (batch for epoch in count(1) for batch in train_batches(split, recipe, epoch=epoch))
    for batch in loader.batches(requests):
        if not batch.requests:
            raise UserError(f"not one clip of a batch could be decoded: {batch.bad[0].reason}; look at the videos")
        yield batch


def _step(training_step: TrainingStep, batch: ClipBatch) -> None:
    training_step.backward(batch.clips, batch.labels, epoch=1, step=0, last=True)
    training_step.update(1e-6, "the benchmark")


def _steps(training_step: TrainingStep, batch: ClipBatch, steps: int) -> float:
    start = now(batch.clips.device)
    for _ in range(steps):
        _step(training_step, batch)
    return now(batch.clips.device) - start


def _fed(training_step: TrainingStep, batches: Iterator[ClipBatch], steps: int, waiting: Waiting) -> float:
    """Seconds of the steps after the first one, by which time the loader is as far ahead as it may be."""
    device = training_step.group.device
    _step(training_step, next(batches))
    start = now(device)
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waiting.waited += time.perf_counter() - asked
        _step(training_step, batch)
    seconds = now(device) - start
    waiting.total += seconds
    batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
    return seconds


def _plain(model: ClipModel, batch: ClipBatch, recipe: Recipe, steps: int):  # type: ignore[no-untyped-def]
    """The loop of a first tutorial: float clips in the layout (N, 3, T, H, W), SGD, the loss read at every step."""
    clips = model.normalise(batch.clips).contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    model.train()

    def turn() -> float:
        start = now(clips.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            for _ in range(steps):
                optimizer.zero_grad()
                loss = F.cross_entropy(model.head(model.dropout(model.backbone(clips))), batch.labels)
                loss.backward()
                optimizer.step()
                loss.item()
        return now(clips.device) - start

    return turn


def _flops(work: Callable[[], object]) -> int:
    """Multiplications and additions of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(training_step: TrainingStep, batch: ClipBatch) -> dict[str, Any]:
    """What a step takes at most, in MB: allocated on the GPU, or resident in this process."""
    device = batch.clips.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _step(training_step, batch)
        return {"of": "the GPU's memory", "megabytes": torch.cuda.max_memory_allocated(device) / 1e6}
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # forgets the highest mark so far
    _step(training_step, batch)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    highest = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"of": "this process", "megabytes": int(highest.split()[1]) * 1024 / 1e6}
