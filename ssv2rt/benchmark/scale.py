"""Benchmark at the scale of SSv2: indexing speed, and start-up time and memory of a loader with 220,847 clips."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssv2rt.core.recipes import Synthetic
from ssv2rt.dataset.index import index
from ssv2rt.dataset.manifest import Manifest, write_manifest
from ssv2rt.dataset.prepare import synthetic_set

logger = logging.getLogger(__name__)


SSV2_CLIPS = 220_847
INDEXED_CLIPS = 10_000
STARTUP_BATCHES = 1500


def benchmark_scale() -> dict[str, Any]:
    """Indexes 10,000 small clips, and starts a loader on a manifest of SSv2's size in a separate process."""
    small = synthetic_set(Synthetic(clips=200, width=112, height=84, frames=(20, 32)))
    with tempfile.TemporaryDirectory(prefix="ssv2rt-", dir=small.parent) as folder:
        root = Path(folder)
        logger.info(f"indexing {INDEXED_CLIPS:,} small clips")
        rate = _index_rate(root, sorted((small / "videos").iterdir()))
        logger.info(f"starting a loader with {SSV2_CLIPS:,} clips")
        manifest = index(small, out=root / "small.parquet")[0]
        _enlarge(manifest, root / "large.parquet")
        start = subprocess.run(
            [sys.executable, "-m", "ssv2rt.benchmark.scale", str(root / "large.parquet")],
            check=True,
            capture_output=True,
            text=True,
        )
    return {"index_clips_per_second": rate, "start": json.loads(start.stdout)}


def _index_rate(root: Path, videos: list[Path]) -> float:
    """Clips per second of `index`, with the files already in the page cache."""
    folder = root / "clips" / "class"
    folder.mkdir(parents=True)
    for number in range(INDEXED_CLIPS):
        os.link(videos[number % len(videos)], folder / f"{number}.webm")
    for path in videos:
        path.read_bytes()  # fills the page cache, so that the speed of the disk is not measured
    start = time.perf_counter()
    index(root / "clips", out=root / "clips.parquet")
    return INDEXED_CLIPS / (time.perf_counter() - start)


def _enlarge(manifest: Manifest, path: Path) -> None:
    """Writes a manifest of SSv2's size that repeats the clips of a small one under other names."""
    table = manifest.table.take(np.arange(SSV2_CLIPS) % len(manifest.table))
    names = pa.array([str(number) for number in range(SSV2_CLIPS)])
    splits = pa.array(["validation" if number % 8 == 0 else "train" for number in range(SSV2_CLIPS)])
    for column, values in (("id", names), ("split", splits)):
        table = table.set_column(table.schema.get_field_index(column), column, values)
    write_manifest(path, Manifest(manifest.labels, manifest.folder, table, fingerprint="-"))


def measure_startup(path: Path) -> dict[str, Any]:
    """Measures the seconds to the first training batch, and the memory in MB above that before opening the manifest."""
    import torch

    import ssv2rt.pipelines.samplers as epochs
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.core.recipes import Recipe
    from ssv2rt.dataset.index import open_manifest
    from ssv2rt.pipelines.loader import ClipLoader

    recipe: Recipe = load_recipe("ssv2-resnet3d18", ("clip.size=48", "clip.frames=8", "train.batch_size=16"))
    bare, start = _resident_megabytes(), time.perf_counter()
    manifest = open_manifest(path)
    opened = time.perf_counter() - start
    split = manifest.split("train")
    loader = ClipLoader(clip=recipe.clip, batch=16, data=recipe.data, device=torch.device("cpu"), augment=True)
    memory, first = [], 0.0
    for number, _ in enumerate(loader.batches(epochs.train_batches(split, recipe, epoch=1))):
        first = first or time.perf_counter() - start
        if number % (STARTUP_BATCHES // 5) == 0:
            memory.append(round(_resident_megabytes() - bare))
        if number == STARTUP_BATCHES:
            break
    return {
        "clips": len(manifest.table),
        "seconds_to_open": opened,
        "seconds_to_first_batch": first,
        "megabytes_above_bare": memory[0],
        "megabytes_over_the_epoch": memory,
    }


def _resident_megabytes() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    print(json.dumps(measure_startup(Path(sys.argv[1]))))
