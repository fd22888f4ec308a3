"""The clips that engines are calibrated on and compared on.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import clip_rng
from ssv2rt.pipelines.samplers import evaluation_batches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """Some clips of a split, as an engine sees them."""

    split: Split
    rows: np.ndarray
    """int64 (N,)"""
    clip: Clip
    data: Data

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """What tells these clips from others, and from what their files were before they were changed."""
        return [f"{self.split.ids[int(row)]} {_state(self.split.path(int(row)))}" for row in self.rows]

    def batches(self, what: str, batch: int = 8) -> Iterator[ClipBatch]:
        """Batches on the CPU, without those of which no clip could be read, and with progress."""
        clip = self.clip.one_view()
        loader = ClipLoader(clip=clip, batch=batch, data=self.data, device=torch.device("cpu"))
        with Progress(what, len(self)) as progress:
            for made in loader.batches(evaluation_batches(self.split, clip, batch=batch, rows=self.rows)):
                if made.requests:
                    yield made
                progress.add(len(made.requests) + len(made.bad))


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # whoever reads it will say so
        return str(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def spread_over_classes(split: Split, count: int, seed: int) -> np.ndarray:
    """int64 (count,) or fewer: rows of a split, in random order, with as even a share of every class as there is."""
    order = clip_rng(seed, 0, "calibration").permutation(len(split))
    turn = np.zeros(len(split), np.int64)  # how many clips of the same class come before
    for label in np.unique(split.classes):
        mine = order[split.classes[order] == label]
        turn[mine] = np.arange(len(mine))
    return order[np.argsort(turn[order], kind="stable")][:count]
