"""The right labels, where annotations tell them: which videos are scored then, and how often the engine is right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.annotations import read_answers, read_one_split, video_folder
from ssv2rt.dataset.listing import UNLABELED
from ssv2rt.scoring.row import EXPECTED, Row
from ssv2rt.scoring.video_sources import Video

BEST = 5
"""Labels that a row must name for top-5."""


@dataclass(frozen=True)
class GroundTruth:
    """What an annotation file says."""

    labels: dict[str, str]
    """For each id its label; empty where it is not told."""

    @classmethod
    def read(cls, file: Path, classes: Sequence[str]) -> GroundTruth:
        """Of an annotation file of SSv2 or its test-answers.csv, for an engine of these classes.

        Raises:
            UserError: it is none, or it has a label that is none of the classes.
        """
        if not file.is_file():
            raise UserError(f"no file '{file}'; give an annotation file of SSv2, or its test-answers.csv")
        if file.suffix.lower() == ".csv":
            clips = list(read_answers(file, tuple(classes)).items())
        else:
            clips = read_one_split(file, tuple(classes))
        return cls({clip: "" if label == UNLABELED else classes[label] for clip, label in clips})

    @property
    def digest(self) -> str:
        """SHA-256 of what was read, of however many files."""
        return hashlib.sha256(json.dumps(self.labels, sort_keys=True).encode()).hexdigest()

    def only(self, videos: Iterable[Video]) -> Iterator[Video]:
        """Of videos the first with each id, whatever its extension; at the end those that were not among them."""
        left = dict.fromkeys(self.labels)
        for video in videos:
            clip = clip_id(video.name)
            if clip in left:
                del left[clip]
                yield video
        yield from (Video(f"{clip}.webm", Path(f"{clip}.webm")) for clip in left)

    def of(self, row: Row) -> str:
        """The right label of a row's video; empty if it is not told."""
        return self.labels.get(clip_id(row["path"]), "")


class AccuracyCounter:
    """Counts how often the right label is first, and among the first five."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._truth = ground_truth
        self.labeled = self.first = self.among = 0

    def add(self, row: Row) -> Row:
        """The row with its right label; one without a label of its own counts as wrong."""
        right = self._truth.of(row)
        if right:
            names = [row.get("label" if rank == 1 else f"label_{rank}") for rank in range(1, BEST + 1)]
            self.labeled += 1
            self.first += names[0] == right
            self.among += right in names
        return {**row, EXPECTED: right or None}

    def facts(self) -> dict[str, float]:
        """Percentages, of all videos with a label."""
        if not self.labeled:
            return {}
        return {"top-1": 100 * self.first / self.labeled, f"top-{BEST}": 100 * self.among / self.labeled}


def videos_of(annotations: Path) -> str:
    """The folder of the videos that annotations are of, as SSv2 is laid out.

    Raises:
        UsageError: there is none.
    """
    folder = video_folder(annotations)
    if folder is None:
        raise UsageError(f"no folder 'videos' beside '{annotations}'; name where the videos are")
    return str(folder)


def clip_id(name: str) -> str:
    """The id of a clip of SSv2, which is its file's name without extension."""
    return os.path.splitext(os.path.basename(name))[0]
