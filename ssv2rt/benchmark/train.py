"""Benchmark of training: with the loader, with one batch in device memory, and with a plain PyTorch loop."""

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

from ssv2rt.benchmark.matrix_product import MATMUL, MatrixProduct
from ssv2rt.benchmark.rounds import describe_machine, run_rounds, synchronized_time
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, choose_device, choose_precision, versions
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.dataset.prepare import override_root, ssv2_like_set
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import train_batches
from ssv2rt.training.determinism import set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep

logger = logging.getLogger(__name__)


WITH_LOADER = "fed by the loader"
READY_BATCH = "the batch lies ready"
PLAIN = "plain loop, fp32, contiguous"


def recipe_to_benchmark(name: str | None, overrides: tuple[str, ...], data: Path | None) -> Recipe:
    """The recipe with its data set, by default a synthetic one with the frame size and coding of SSv2.

    Args:
        name: a recipe. By default ssv2-resnet3d18, without a GPU in batches of 4 clips of 112x112, to take only minutes.
        overrides: `section.key=value` changes.
        data: another data set.

    Raises:
        UsageError: there is no such recipe, or a setting is out of range.
    """
    if name is None and choose_device().type != "cuda":
        overrides = ("clip.size=112", "train.batch_size=4", "train.accumulate=1", *overrides)
    recipe = load_recipe(name or "ssv2-resnet3d18", overrides)
    return recipe.model_copy(update={"data": override_root(recipe.data, data or ssv2_like_set())})


@dataclass
class LoaderWait:
    """How much of the training time was spent waiting for the loader, in seconds."""

    waited: float = 0.0
    total: float = 0.0


def benchmark_train(recipe: Recipe, manifest: Manifest, *, steps: int, rounds: int) -> dict[str, Any]:
    """Measures throughput, peak memory and FLOPs of training, and compares them with what the machine can reach.

    Args:
        recipe: sets the network, the clips and the training step. Nothing is saved.
        manifest: the data set; its training clips are repeated.
        steps: training steps in a round.
        rounds: number of timed rounds.

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
        _build_network(recipe, manifest).channels_last().to(device), recipe.train, precision, Group(0, 1, device)
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
    ready_batch = next(_endless_batches(loader, recipe, split))
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        forward_flops = _flops(lambda: training_step.model(ready_batch.clips))
    flops = _flops(lambda: _step(training_step, ready_batch))
    memory = peak_memory(training_step, ready_batch)
    waiting = LoaderWait()
    product = MatrixProduct(device, precision)
    rates = run_rounds(
        {
            WITH_LOADER: lambda: _time_with_loader(
                training_step, _endless_batches(loader, recipe, split), steps, waiting
            ),
            READY_BATCH: lambda: _time_ready_batch(training_step, ready_batch, steps),
            PLAIN: _plain_loop(_build_network(recipe, manifest).to(device), ready_batch, recipe, steps),
            MATMUL: product.turn,
        },
        units=steps * batch,
        rounds=rounds,
    )
    peak = rates.pop(MATMUL).high / (steps * batch) * product.operations
    achieved = rates[READY_BATCH].median / batch * flops
    return {
        "model": recipe.model.name,
        "clip": f"{recipe.clip.frames} x {recipe.clip.size} x {recipe.clip.size}",
        "batch": batch,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "share_of_resident": rates[WITH_LOADER].median / rates[READY_BATCH].median,
        "times_plain": rates[WITH_LOADER].median / rates[PLAIN].median,
        "waiting_for_data": waiting.waited / max(1e-9, waiting.total),
        "peak_memory": memory,
        "gflop_forwards": forward_flops / 1e9,
        "gflop_per_step": flops / 1e9,
        "gflop_per_second": achieved / 1e9,
        "matrix_product_gflop_per_second": peak / 1e9,
        "share_of_matrix_product": achieved / peak,
        "machine": describe_machine(),
        "versions": versions(),
    }


def _build_network(recipe: Recipe, manifest: Manifest) -> ClipModel:
    return build_model(recipe.model, len(manifest.labels))


def _endless_batches(loader: ClipLoader, recipe: Recipe, split: Split) -> Iterator[ClipBatch]:
    """Endless training batches from a fresh start of the loader, with nothing prefetched yet."""
    requests = (batch for epoch in count(1) for batch in train_batches(split, recipe, epoch=epoch))
    for batch in loader.batches(requests):
        if not batch.requests:
            raise UserError(f"none of the clips of a batch could be decoded: {batch.bad[0].reason}; check the videos")
        yield batch


def _step(training_step: TrainingStep, batch: ClipBatch) -> None:
    training_step.backward(batch.clips, batch.labels, epoch=1, step=0, last=True)
    training_step.optimizer_step(1e-6, "the benchmark")


def _time_ready_batch(training_step: TrainingStep, batch: ClipBatch, steps: int) -> float:
    start = synchronized_time(batch.clips.device)
    for _ in range(steps):
        _step(training_step, batch)
    return synchronized_time(batch.clips.device) - start


def _time_with_loader(
    training_step: TrainingStep, batches: Iterator[ClipBatch], steps: int, waiting: LoaderWait
) -> float:
    """Seconds of `steps` steps after a first one, during which the loader fills its prefetch queue."""
    device = training_step.group.device
    _step(training_step, next(batches))
    start = synchronized_time(device)
    for _ in range(steps):
        wait_start = time.perf_counter()
        batch = next(batches)
        waiting.waited += time.perf_counter() - wait_start
        _step(training_step, batch)
    seconds = synchronized_time(device) - start
    waiting.total += seconds
    batches.close()  # type: ignore[attr-defined]  # closing the generator stops its threads
    return seconds


def _plain_loop(model: ClipModel, batch: ClipBatch, recipe: Recipe, steps: int):  # type: ignore[no-untyped-def]
    """The loop of a beginner's tutorial: float clips (N, 3, T, H, W), fp32, SGD, and `loss.item()` at every step."""
    clips = model.normalise(batch.clips).contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    model.train()

    def turn() -> float:
        start = synchronized_time(clips.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            for _ in range(steps):
                optimizer.zero_grad()
                loss = F.cross_entropy(model.head(model.dropout(model.backbone(clips))), batch.labels)
                loss.backward()
                optimizer.step()
                loss.item()
        return synchronized_time(clips.device) - start

    return turn


def _flops(work: Callable[[], object]) -> int:
    """Number of multiplications plus additions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(training_step: TrainingStep, batch: ClipBatch) -> dict[str, Any]:
    """Peak memory of a training step in MB: allocated on the GPU, or resident memory of this process."""
    device = batch.clips.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _step(training_step, batch)
        return {"of": "the GPU's memory", "megabytes": torch.cuda.max_memory_allocated(device) / 1e6}
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets the peak value VmHWM
    _step(training_step, batch)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"of": "this process", "megabytes": int(peak.split()[1]) * 1024 / 1e6}
