"""Measures codecs on this machine: how fast clips are decoded, in how many bytes, and how far they are from the original."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ssv2rt.benchmark.rounds import Workload, run_rounds, synchronized_time
from ssv2rt.core.hardware import DTYPES, choose_device, choose_precision
from ssv2rt.core.recipes import Augment, Recipe
from ssv2rt.core.run_folders import find_run
from ssv2rt.core.temporary import make_temporary_folder, remove_temporary_folder
from ssv2rt.dataset.classes import for_classes
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.models.weights import TrainedModel, load_trained
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request_of, training_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.repack.run import pool
from ssv2rt.repack.settings import Settings
from ssv2rt.repack.source import SourceClips
from ssv2rt.training.evaluate import evaluation_loader
from ssv2rt.video.container import OK
from ssv2rt.video.decode import decode_clips

logger = logging.getLogger(__name__)

ORIGINAL = "original"
_ROUNDS = 3
_ALIKE = 0.95
"""Codecs that reach this share of the fastest one's rate count as equally fast; then the fewest bytes decide."""


@dataclass(frozen=True)
class Measured:
    """What one codec gives. The original has no `seconds`, and no difference."""

    clips_per_second: float
    """Of training clips, with all threads."""
    bytes: float
    """Of a clip's file on average."""
    seconds: float = 0.0
    """To repack a clip, with all processes."""
    difference: float = 0.0
    """Mean absolute difference to the original after cropping and scaling, of 255."""
    top1: float | None = None
    """Accuracy in percent of a run's network on the same clips."""


def measure(
    source: Manifest,
    recipe: Recipe,
    candidates: Sequence[Settings],
    *,
    clips: int,
    workers: int,
    run: str | None = None,
) -> dict[str, Measured]:
    """Measures codecs on some clips, spread evenly over a split: training, or validation if there is a run.

    Args:
        source: the data set.
        recipe: sets the size of clips, and the crops.
        candidates: what to measure.
        clips: how many clips.
        workers: number of processes that repack.
        run: a run, whose network classifies the clips.

    Returns:
        Figures by codec, and of the original.
    """
    trained = load_trained(find_run(run)) if run else None
    if trained:
        source = for_classes(source, trained.labels, f"run '{run}'")
    split = source.split("validation" if trained else "train")
    rows = np.unique(np.linspace(0, len(split) - 1, min(clips, len(split))).astype(int)).tolist()
    work = make_temporary_folder("ssv2rt-repack-", tempfile.gettempdir())
    try:
        made = {c.codec: _repack(source, split, rows, c, Path(work), workers) for c in candidates}
        rows = [row for row in rows if all(row in files for files, _ in made.values())]
        if not rows:
            return {}
        paths = {ORIGINAL: {row: split.path(row) for row in rows}} | {name: files for name, (files, _) in made.items()}
        return _figures(split, rows, recipe, paths, {name: seconds for name, (_, seconds) in made.items()}, trained)
    finally:
        remove_temporary_folder(work)


def fastest(measured: Mapping[str, Measured]) -> str:
    """The codec to take: the fastest, or one that is about as fast in fewer bytes."""
    codecs = {name: figures for name, figures in measured.items() if name != ORIGINAL}
    limit = _ALIKE * max(figures.clips_per_second for figures in codecs.values())
    return min((n for n, figures in codecs.items() if figures.clips_per_second >= limit), key=lambda n: codecs[n].bytes)


def _repack(
    source: Manifest, split: Split, rows: Sequence[int], settings: Settings, work: Path, workers: int
) -> tuple[dict[int, Path], float]:
    """The new files by row of the split, without clips that cannot be repacked, and the seconds for each."""
    folder = work / settings.codec
    folder.mkdir()
    clips = SourceClips(source)
    of_id = {clip: row for row, clip in enumerate(clips.ids)}
    files = {row: folder / f"{row}{settings.coding.suffix}" for row in rows}
    tasks = [(row, clips.task(of_id[split.ids[row].as_py()], files[row])) for row in rows]
    ends: list[float] = []
    good: dict[int, Path] = {}
    logger.info(f"measuring {settings.codec} on {len(rows)} clips")
    with pool(folder, settings, min(workers, len(rows))) as processes:
        for results in processes.run(tasks):
            for row, facts in results:
                ends.append(time.monotonic())
                if facts["status"] == OK:
                    good[row] = files[row]
    return good, (ends[-1] - ends[0]) / max(1, len(ends) - 1)


def _figures(
    split: Split,
    rows: Sequence[int],
    recipe: Recipe,
    paths: Mapping[str, Mapping[int, Path]],
    seconds: Mapping[str, float],
    trained: TrainedModel | None,
) -> dict[str, Measured]:
    plain = Augment(crop_scale=recipe.augment.crop_scale, crop_ratio=recipe.augment.crop_ratio, flip="never", color=0.0)
    clip = recipe.clip.one_view()
    requests = [training_request(split, row, clip=clip, augment=plain, seed=0, epoch=1) for row in rows]
    device = choose_device()
    batch = min(8, len(rows))
    loader = ClipLoader(clip=clip, batch=batch, data=recipe.data.model_copy(update={"decoder": "auto"}), device=device)

    def work(variant: str) -> Callable[[], float]:
        wanted = _of(requests, rows, paths[variant])

        def run() -> float:
            start = time.perf_counter()
            for _ in loader.batches(in_batches(iter(wanted), batch)):
                pass
            return synchronized_time(device) - start

        return run

    workloads: dict[str, Workload] = {variant: work(variant) for variant in paths}
    rates = run_rounds(workloads, units=len(rows), rounds=_ROUNDS)
    differences = {variant: _difference(requests, _of(requests, rows, paths[variant]), clip.size) for variant in paths}
    return {
        variant: Measured(
            clips_per_second=rates[variant].median,
            bytes=statistics.fmean(files[row].stat().st_size for row in rows),
            seconds=seconds.get(variant, 0.0),
            difference=differences[variant],
            top1=_top1(split, rows, files, trained) if trained else None,
        )
        for variant, files in paths.items()
    }


def _of(requests: Sequence[ClipRequest], rows: Sequence[int], files: Mapping[int, Path]) -> list[ClipRequest]:
    """The same requests of other files. Crops refer to the source's frames, and decoders scale them."""
    return [replace(request, path=files[row]) for request, row in zip(requests, rows, strict=True)]


def _difference(originals: Sequence[ClipRequest], others: Sequence[ClipRequest], size: int, most: int = 16) -> float:
    """Mean absolute difference of the first clips, of 255."""
    found = []
    for original, other in list(zip(originals, others, strict=True))[:most]:
        a, b = (decode_clips(request.path, request, size=size).astype(np.int16) for request in (original, other))
        found.append(float(np.abs(a - b).mean()))
    return statistics.fmean(found)


def _top1(split: Split, rows: Sequence[int], files: Mapping[int, Path], trained: TrainedModel) -> float:
    """Accuracy in percent of a network on some clips, in its own preprocessing."""
    recipe, device = trained.recipe, choose_device()
    clip = recipe.clip.one_view()
    recipe = recipe.model_copy(update={"clip": clip})
    model = trained.model.channels_last().to(device).eval()
    precision = choose_precision(recipe.train.precision, device)
    right = 0
    requests = (replace(evaluation_request_of(split, row, clip=clip), path=files[row]) for row in rows)
    with torch.inference_mode():
        for batch in evaluation_loader(recipe, device).batches(in_batches(requests, recipe.train.batch)):
            if batch.requests:
                with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                    logits = model(batch.clips)
                right += int((logits.float().argmax(1) == batch.labels).sum())
    return 100 * right / len(rows)
