"""Selects and reads the clips for calibration and verification of engines.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.engines.source import Source
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import clip_rng
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import evaluation_batches
from ssv2rt.video.storage import VideoLocation

logger = logging.getLogger(__name__)


class ClipSelection(Protocol):
    """Clips that an engine is calibrated on or compared on."""

    @property
    def clip(self) -> Clip: ...

    @property
    def clips_from(self) -> str:
        """Where they are from, in words."""
        ...

    def __len__(self) -> int: ...

    @property
    def names(self) -> list[str]:
        """One key for each clip, which changes when the clip does."""
        ...

    def first(self, count: int) -> ClipSelection:
        """The first clips of the selection, at most `count`."""
        ...

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        """Reads the clips in batches on the CPU, showing progress. Batches without any readable clip are left out.

        Args:
            what: label of the progress display.
            batch: clips in a batch.
        """
        ...


@dataclass(frozen=True)
class Clips:
    """A selection of clips of a split, read as an engine's input."""

    split: Split
    rows: np.ndarray
    """Rows of the split, int64 (N,)."""
    clip: Clip
    data: Data
    clips_from: str = "the data set"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """One key for each clip (id, path, size and time of its file)."""
        return [f"{self.split.ids[int(row)]} {file_key(self.split.path(int(row)))}" for row in self.rows]

    def first(self, count: int) -> Clips:
        return replace(self, rows=self.rows[:count])

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        requests = evaluation_batches(self.split, self.clip.one_view(), batch=batch, rows=self.rows)
        return read_clips(requests, len(self), what, batch=batch, clip=self.clip, data=self.data)


@dataclass(frozen=True)
class ChosenClips:
    """Clips for both purposes, chosen without a data set, or not from it alone."""

    calibration: ClipSelection | None
    """None if there are none, for precisions that need none."""
    verification: ClipSelection


def read_clips(
    requests: Iterable[Sequence[ClipRequest]], count: int, what: str, *, batch: int, clip: Clip, data: Data
) -> Iterator[ClipBatch]:
    """Reads clips on the CPU, one view of each. Clips that cannot be read are named in a warning and left out."""
    loader = ClipLoader(clip=clip.one_view(), batch=batch, data=data, device=torch.device("cpu"))
    with Progress(what, count) as progress:
        for made in loader.batches(requests):
            for bad in made.bad:
                logger.warning(f"'{bad.request.path}' is left out: {bad.reason}")
            if made.requests:
                yield made
            progress.add(len(made.requests) + len(made.bad))


def file_key(path: VideoLocation) -> str:
    """Path, size and time of a file."""
    try:
        found = Path(str(path)).stat()
    except OSError:  # reported later, when the file is read
        return str(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def select_clips(source: Source, data: Manifest | ChosenClips, split: str, count: int, seed: int) -> ClipSelection:
    """Clips for a network, from a split of a data set and spread over its classes, or as they were chosen.

    Args:
        source: the network, which says how clips are read.
        data: the data set; or chosen clips, with those for verification as the validation split.
        split: name of the split.
        count: number of clips; all of the split if it has fewer.
        seed: of the random choice.
    """
    if isinstance(data, ChosenClips):
        chosen = data.verification if split == "validation" else data.calibration
        assert chosen is not None, "clips for calibration are chosen where the precision needs them"
        return chosen.first(count)
    found = data.split(split)
    rows = spread_over_classes(found, count, seed)
    return Clips(found, rows, source.clip, source.data, f"{split} split of {data.folder}")


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
