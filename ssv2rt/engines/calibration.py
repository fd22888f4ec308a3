"""Selects and reads the clips for calibration and verification of engines.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.engines.source import Source
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import clip_rng
from ssv2rt.pipelines.samplers import evaluation_batches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """A selection of clips of a split, read as an engine's input."""

    split: Split
    rows: np.ndarray
    """Rows of the split, int64 (N,)."""
    clip: Clip
    data: Data

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """One key for each clip (id, path, size and time of its file), which changes when the file does."""
        return [f"{self.split.ids[int(row)]} {_file_key(self.split.path(int(row)))}" for row in self.rows]

    def first(self, count: int) -> Clips:
        """The first clips of the selection, at most `count`."""
        return replace(self, rows=self.rows[:count])

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        """Reads the clips in batches on the CPU, showing progress. Batches without any readable clip are left out.

        Args:
            what: label of the progress display.
            batch: clips in a batch.
        """
        clip = self.clip.one_view()
        loader = ClipLoader(clip=clip, batch=batch, data=self.data, device=torch.device("cpu"))
        with Progress(what, len(self)) as progress:
            for made in loader.batches(evaluation_batches(self.split, clip, batch=batch, rows=self.rows)):
                if made.requests:
                    yield made
                progress.add(len(made.requests) + len(made.bad))


def _file_key(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # reported later, when the file is read
        return str(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def select_clips(source: Source, manifest: Manifest, split: str, count: int, seed: int) -> Clips:
    """Clips of a split for a network, spread over the classes.

    Args:
        source: the network, which says how clips are read.
        manifest: the data set.
        split: name of the split.
        count: number of clips; all of the split if it has fewer.
        seed: of the random choice.
    """
    found = manifest.split(split)
    return Clips(found, spread_over_classes(found, count, seed), source.clip, source.data)


def spread_over_classes(split: Split, count: int, seed: int) -> np.ndarray:
    """Picks rows of a split at random, spread as evenly over the classes as possible.

    Returns:
        int64 (min(count, clips of the split),).
    """
    order = clip_rng(seed, 0, "calibration").permutation(len(split))
    rank_in_class = np.zeros(len(split), np.int64)  # how many clips of the same class come earlier in the random order
    for label in np.unique(split.classes):
        mine = order[split.classes[order] == label]
        rank_in_class[mine] = np.arange(len(mine))
    return order[np.argsort(rank_in_class[order], kind="stable")][:count]
