"""Training fed by the loader, beside the same step on a batch that lies ready, on clips coded as SSv2's are.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import itertools
import json
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_check import measure
from gpu_check.record import Record, steps
from gpu_check.usage import Usage
from gpu_check.videos import like_ssv2
from ssv2rt.core.hardware import choose_precision
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import train_batches
from ssv2rt.training.batch_size import count_need, free_memory, steps_fit, with_batch_size
from ssv2rt.training.determinism import set_deterministic
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep


def small(record: Record) -> None:
    _decoders(record, size=112, batch=32)


def large(record: Record) -> None:
    _decoders(record, size=224, batch=16)


def waits(record: Record) -> None:
    """Which calls of a step let the CPU wait for the GPU, as PyTorch itself tells."""
    where = measure.need_gpu()
    recipe = _recipe(record, size=112, batch=8)
    bench = Bench(recipe, open_manifest(like_ssv2(record)), where)
    batches = bench.batches()
    for _ in range(4):
        bench.step(next(batches))
    torch.cuda.synchronize()
    seen: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(4):
                batch = next(batches)
                bench.step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for warning in told:
            if "synchroniz" in str(warning.message):
                seen[f"{_short(warning.filename)}:{warning.lineno}"] += 1
    batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
    for place, count in seen.most_common():
        record.row("calls that wait, in 4 steps", place=place, times=count)
    record.fact("calls that wait in a step", sum(seen.values()) / 4)
    if bench.precision != "fp16":  # the scaler of fp16 asks whether a gradient was infinite
        record.check("no step waits for the GPU", not seen, ", ".join(seen))


def batch_size(record: Record) -> None:
    """`train.batch_size = "auto"`: what is counted, what is found, and whether it trains."""
    where = measure.device()
    recipe = _recipe(record, size=224, batch=8)
    auto = recipe.train.model_copy(update={"batch_size": "auto", "update_clips": 8 if record.tiny else 64})
    recipe = recipe.model_copy(update={"train": auto})
    precision, group = choose_precision("auto", where), Group(0, 1, where)
    need = count_need(recipe, 174, precision)
    measure.forget_peak(where)
    start = time.perf_counter()
    found = with_batch_size(recipe, 174, precision, group).train
    record.fact("seconds to find a batch size", time.perf_counter() - start)
    record.fact("batch size that was found", found.batch)
    record.fact("megabytes that were counted for it", need.of(found.batch) / 1e6)
    record.fact("megabytes that may be used", free_memory(where) / 1e6)
    record.check("it makes a whole update", found.batch * found.accumulate == auto.update_clips, found.accumulate)
    if where.type == "cuda":
        measure.forget_peak(where)
        record.check("it trains", steps_fit(recipe, 174, precision, group, found.batch))
        record.fact("megabytes at its peak", measure.peak_megabytes(where))


def benchmark(record: Record) -> None:
    """`ssv2rt benchmark train` itself, briefly."""
    from ssv2rt.benchmark.train import benchmark_train

    recipe = _recipe(record, size=112, batch=16)
    found = benchmark_train(recipe, open_manifest(like_ssv2(record)), steps=2 if record.tiny else 5, rounds=2)
    for name in ("precision", "share_of_resident", "times_plain", "waiting_for_data", "share_of_matrix_product"):
        record.fact(name, found[name])
    record.fact("clips per second", {name: rate["median"] for name, rate in found["clips_per_second"].items()})
    record.fact("peak memory", found["peak_memory"])


def _decoders(record: Record, *, size: int, batch: int) -> None:
    where = measure.device()
    manifest = open_manifest(like_ssv2(record))
    ours = measure.usual_decoder()
    resident = 0.0
    ways = list(dict.fromkeys([ours, "auto", "pyav"]))  # auto: measured, where there is NVDEC
    each = record.left() / (len(ways) + 1)
    for number, decoder in enumerate(steps(record, ways, each=0.5 * each, what="decoders")):
        bench = Bench(_recipe(record, size=size, batch=batch, decoder=decoder), manifest, where)
        if not number:
            resident = bench.resident(record.moment(0.4 * each))
        with Usage() as usage:
            fed, waited, bad = bench.fed(record.moment(0.5 * each))
        for text in bench.told:
            record.note(text)
        record.row(
            "training",
            network=bench.title,
            decoder=decoder,
            batch=bench.batch,
            precision=bench.precision,
            fed_clips_per_second=fed,
            resident_clips_per_second=resident,
            fed_reaches=fed / resident,
            waiting_for_data=waited,
            pyav_share=bench.share,
            gpu_percent=usage.gpu,
            nvdec_percent=usage.decoder,
        )
        record.check(f"no clip fails: {bench.title}, {decoder}", bad == 0, f"{bad} bad")
        loss, _ = bench.training_step.tally.read()
        record.check(f"the loss is finite: {bench.title}, {decoder}", loss == loss and abs(loss) < 1e4, f"{loss:.3f}")
        del bench
        measure.free()


class Bench:
    """A network with its optimiser, and the loader that feeds it, as the trainer has them.

    Args:
        recipe: network, clips, batch and decoder.
        manifest: its training clips are used over and over.
        where: the device.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, where: torch.device) -> None:
        set_deterministic(False)
        self._recipe, self._where = recipe, where
        self.told: list[str] = []
        """What the loader says of its decoders."""
        self.share = 0.0
        """Of the clips, those that PyAV decodes beside NVDEC."""
        self._split = manifest.split("train")
        self.batch = recipe.train.batch
        self.precision = choose_precision("auto", where)
        self.title = f"{recipe.model.name}, {recipe.clip.frames} x {recipe.clip.size} x {recipe.clip.size}"
        torch.manual_seed(0)
        model = build_model(recipe.model, len(manifest.labels)).channels_last().to(where)
        self.training_step = TrainingStep(model.train(), recipe.train, self.precision, Group(0, 1, where))

    def batches(self) -> Iterator[ClipBatch]:
        """Without end."""
        recipe = self._recipe
        self._loader = loader = ClipLoader(
            clip=recipe.clip,
            batch=self.batch,
            data=recipe.data,
            device=self._where,
            augment=recipe.augment.has_pixel_augment,
            measured=self.told.append,
        )
        epochs = itertools.count(1)
        yield from loader.batches(
            batch for epoch in epochs for batch in train_batches(self._split, recipe, epoch=epoch)
        )

    def step(self, batch: ClipBatch) -> None:
        self.training_step.backward(batch.clips, batch.labels, epoch=1, step=0, last=True)
        self.training_step.update(1e-6, "the check")

    def resident(self, seconds: float) -> float:
        """Clips per second on one batch."""
        batches = self.batches()
        batch = next(batches)
        batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
        for _ in range(3):
            self.step(batch)
        start, done = measure.now(self._where), 0
        while done < 2 or time.perf_counter() - start < seconds:
            self.step(batch)
            done += 1
            if done % 4 == 0:  # so that the clock is not far ahead of the GPU
                measure.now(self._where)
        return done * self.batch / (measure.now(self._where) - start)

    def fed(self, seconds: float) -> tuple[float, float, int]:
        """Clips per second fed by the loader, the share of time that was spent on waiting for it, and bad clips."""
        batches = self.batches()
        for _ in range(3):
            self.step(next(batches))
        self.share = self._loader.share
        waited, clips, bad, done = 0.0, 0, 0, 0
        start = measure.now(self._where)
        while done < 2 or time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self.step(batch)
            done, clips, bad = done + 1, clips + len(batch.requests), bad + len(batch.bad)
        took = measure.now(self._where) - start
        batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
        return clips / took, waited / took, bad


def _recipe(record: Record, *, size: int, batch: int, decoder: str = "auto") -> Recipe:
    """The recipe ssv2-resnet3d18 as it is shipped, with another size and batch."""
    file = Path(__file__).resolve().parents[2] / "pipelines" / "ssv2-resnet3d18.toml"
    settings: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    settings["data"] |= {"decoder": decoder}
    settings["clip"] |= {"size": size}
    settings["train"] |= {"batch_size": batch, "accumulate": 1}
    if record.tiny:
        settings["clip"] |= {"frames": 4, "size": 32}
        settings["model"] |= {"width": 8}
        settings["train"] |= {"batch_size": 4}
    return Recipe.model_validate_json(json.dumps(settings))


def _short(name: str) -> str:
    """A file's path from its package on."""
    parts = Path(name).parts
    return "/".join(parts[-3:])
