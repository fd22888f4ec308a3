"""The right labels, where annotations tell them: which videos are scored then, and how often the engine is right."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.errors import UsageError, UserError, nearest
from ssv2rt.dataset.annotations import read_one_split, video_folder
from ssv2rt.dataset.labels import class_of_template
from ssv2rt.dataset.listing import UNLABELLED
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
            return cls(_read_answers(file, classes))
        clips = read_one_split(file, tuple(classes))
        return cls({clip: "" if label == UNLABELLED else classes[label] for clip, label in clips})

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
        self.labelled = self.first = self.among = 0

    def add(self, row: Row) -> Row:
        """The row with its right label; one without a label of its own counts as wrong."""
        right = self._truth.of(row)
        if right:
            names = [row.get("label" if rank == 1 else f"label_{rank}") for rank in range(1, BEST + 1)]
            self.labelled += 1
            self.first += names[0] == right
            self.among += right in names
        return {**row, EXPECTED: right or None}

    def facts(self) -> dict[str, float]:
        """Percentages, of all videos with a label."""
        if not self.labelled:
            return {}
        return {"top-1": 100 * self.first / self.labelled, f"top-{BEST}": 100 * self.among / self.labelled}


def videos_of(annotations: Path) -> str:
    """The folder of the videos that annotations are of, as SSv2 is laid out.

    Raises:
        UsageError: there is none.
    """
    folder = video_folder(annotations)
    if folder is None:
        raise UsageError(f"no folder 'videos' beside '{annotations}'; name where the videos are")
    return str(folder)


def _read_answers(file: Path, classes: Sequence[str]) -> dict[str, str]:
    """The label of each id in SSv2's test-answers.csv, whose lines are `id;label`.

    Raises:
        UserError: it cannot be read, is written in another way, or has a label that is none of the classes.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{file}': {error}; give SSv2's test-answers.csv") from None
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        clip, separator, text = line.partition(";")
        clip, label = clip.strip(), class_of_template(text.strip())
        if not separator or not clip.isprintable() or "/" in clip or clip in ("", ".", ".."):
            raise UserError(f"{file}: line {number} is {line[:60]!r}; expected id;label, as in SSv2's test-answers.csv")
        if label not in classes:
            raise UserError(
                f"{file}: clip '{clip}' has the label '{label}', which is none of the classes{nearest(label, list(classes))}"
            )
        if clip in labels:
            raise UserError(f"{file}: clip '{clip}' is named twice; every id may stand once")
        labels[clip] = label
    if not labels:
        raise UserError(f"{file}: names no clips; expected lines id;label, as in SSv2's test-answers.csv")
    return labels


def clip_id(name: str) -> str:
    """The id of a clip of SSv2, which is its file's name without extension."""
    return os.path.splitext(os.path.basename(name))[0]
