"""The right labels, where annotations tell them: which videos are scored then, and how often the engine is right."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ssv2rt.core.class_names import match_classes
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.annotations import is_annotation_file, read_label_texts, video_folder
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.listing import UNLABELED, Clip, Listing, hold_out_validation, text_to_path
from ssv2rt.dataset.manifest import CLIP_FIELDS, TRAINING_COLUMNS, is_manifest, read_manifest
from ssv2rt.scoring.row import EXPECTED, Row
from ssv2rt.scoring.video_sources import Video, log_once

logger = logging.getLogger(__name__)

BEST = 5
"""Labels that a row must name for top-5."""


@dataclass(frozen=True)
class GroundTruth:
    """What annotations say of clips. A clip's key is its id in an annotation file, and its path in a data set."""

    labels: dict[str, str]
    """By key: the label, which is that of the engine if they match; empty where it is not told."""
    unknown: frozenset[str] = frozenset()
    """Labels that are no classes of the engine. Their clips are scored, and left out of accuracy."""
    files: dict[str, str] = field(default_factory=dict)
    """By key: the path of the clip; empty for an annotation file, whose clips are known by their ids alone."""

    @classmethod
    def read(cls, source: Path, classes: Sequence[str], split: str | None = None) -> GroundTruth:
        """Reads annotations, and matches their labels with an engine's classes by name.

        Args:
            source: an annotation file of SSv2, its test-answers.csv, or a data set in any form that training takes.
            classes: class names of the engine.
            split: of a data set: train, validation, test or all. By default validation, or all if it has no splits.

        Raises:
            UsageError: `split` is given with an annotation file.
            UserError: there is no such file, it is none of these, or the engine knows none of its labels.
        """
        if not source.exists():
            raise UserError(f"no '{source}'; give --annotations an annotation file, test-answers.csv or a data set")
        if is_annotation_file(source):
            if split:
                raise UsageError(f"--split {split} with '{source}', which is a single split; leave out --split")
            return cls._matched(read_label_texts(source), classes, f"'{source}'")
        listing = _listing(source)
        clips = _clips_of_split(listing, split, source)
        labels = {clip.path: "" if clip.label == UNLABELED else listing.labels[clip.label] for clip in clips}
        truth = cls._matched(labels, classes, f"'{source}'")
        return replace(truth, files={clip.path: str(listing.folder / clip.path) for clip in clips})

    @classmethod
    def _matched(cls, labels: dict[str, str], classes: Sequence[str], source: str) -> GroundTruth:
        match = match_classes(sorted({label for label in labels.values() if label}), classes)
        if match.names and len(match.unknown) == len(match.names):
            raise match.none_known(source, "the engine")
        if text := match.spelling_text(source, "the engine"):
            logger.warning(text)
        names = dict(zip(match.names, match.numbers.tolist(), strict=True))
        known = {name: classes[number] for name, number in names.items() if number != UNLABELED}
        unknown = frozenset(match.unknown)
        if unknown:
            clips = sum(label in unknown for label in labels.values())
            logger.warning(
                f"{len(unknown)} of the {len(names)} classes of {source} are no classes of the engine, so {clips} of its "
                f"{len(labels)} clips are left out of accuracy: {match.unknown_text()}"
            )
        return cls({clip: known.get(label, label) for clip, label in labels.items()}, unknown)

    @property
    def digest(self) -> str:
        """SHA-256 of what was read, of however many files."""
        return hashlib.sha256(json.dumps(self.labels, sort_keys=True).encode()).hexdigest()

    def only(self, videos: Iterable[Video]) -> Iterator[Video]:
        """Of videos the first of each clip; at the end the clips that were not among them.

        A clip of an annotation file may have any extension and folder. One of a data set may be in another folder.
        """
        left = dict.fromkeys(self.labels)
        others, example = 0, ""
        for video in videos:
            clip = self._key(video.name)
            if clip in left:
                del left[clip]
                yield video
            elif clip is None:
                others, example = others + 1, example or video.name
        if others:
            log_once(
                f"{others:,} of the videos, such as '{example}', are none of the {len(self.labels):,} clips of --annotations, "
                "and are not scored; leave out --annotations to score them"
            )
        for clip in left:
            name = self.files.get(clip, f"{clip}.webm")
            yield Video(name, Path(name))

    def of(self, row: Row) -> str:
        """The right label of a row's video; empty if it is not told."""
        clip = self._key(row["path"])
        return "" if clip is None else self.labels[clip]

    def _key(self, name: str) -> str | None:
        """The key of the clip that a video is; None if it is none of the clips."""
        if not self.files:
            clip = os.path.splitext(os.path.basename(name))[0]
            return clip if clip in self.labels else None
        absolute = os.path.abspath(name)
        if absolute in self._by_path:
            return self._by_path[absolute]
        parts = name.split("/")
        ends = ("/".join(parts[at:]) for at in range(len(parts)))
        return next((self._by_path[end] for end in ends if end in self._by_path), None)

    @cached_property
    def _by_path(self) -> dict[str, str]:
        """The key of each clip, by its path in the data set and by its absolute path."""
        relative = {os.path.normpath(clip): clip for clip in self.files}
        return relative | {os.path.abspath(path): clip for clip, path in self.files.items()}


class AccuracyCounter:
    """Counts how often the right label is first, and among the first five; also for each class."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._truth = ground_truth
        self.labeled = self.first = self.among = 0
        self._classes: dict[str, list[int]] = {}
        """By label: clips, and clips for which it is first."""

    def add(self, row: Row) -> Row:
        """The row with its right label; one without a label of its own counts as wrong."""
        right = self._truth.of(row)
        if right and right not in self._truth.unknown:
            names = [row.get("label" if rank == 1 else f"label_{rank}") for rank in range(1, BEST + 1)]
            correct = names[0] == right
            self.labeled += 1
            self.first += correct
            self.among += right in names
            counts = self._classes.setdefault(right, [0, 0])
            counts[0] += 1
            counts[1] += correct
        return {**row, EXPECTED: right or None}

    def facts(self) -> dict[str, float]:
        """Percentages, of all videos with a label that the engine knows."""
        if not self.labeled:
            return {}
        classes = self.classes()
        return {
            "top-1": 100 * self.first / self.labeled,
            f"top-{BEST}": 100 * self.among / self.labeled,
            "mean class accuracy": sum(accuracy for _, _, accuracy in classes) / len(classes),
        }

    def classes(self) -> list[tuple[str, int, float]]:
        """Label, number of clips and percentage of correct ones of each class that has clips, the worst first."""
        found = [(label, clips, 100 * correct / clips) for label, (clips, correct) in self._classes.items()]
        return sorted(found, key=lambda figures: (figures[2], -figures[1], figures[0]))


def videos_of(annotations: Path) -> tuple[str, ...]:
    """The inputs that annotations are of. A data set names its clips; an annotation file has a folder of videos beside it.

    Raises:
        UsageError: there is no such folder.
    """
    if not is_annotation_file(annotations):
        return ()
    folder = video_folder(annotations)
    if folder is None:
        raise UsageError(f"no folder 'videos' beside '{annotations}'; name where the videos are")
    return (str(folder),)


def _listing(source: Path) -> Listing:
    """The clips of a data set or of its manifest."""
    if not is_manifest(source):
        return list_clips(source)
    manifest = read_manifest(source, TRAINING_COLUMNS)
    if manifest is None:
        raise UserError(f"the manifest '{source}' is damaged or of another version; build it again with `ssv2rt index`")
    rows = manifest.table.select(CLIP_FIELDS.names).to_pylist()
    clips = [Clip(**row | {"path": text_to_path(row["path"])}) for row in rows]
    return Listing(manifest.labels, manifest.folder, clips, [])


def _clips_of_split(listing: Listing, split: str | None, source: Path) -> list[Clip]:
    if split is None:
        # What was held out of a data set without splits is no split of its own.
        together = [replace(clip, split="train") for clip in listing.clips]
        split = "all" if hold_out_validation(together) == listing.clips else "validation"
        if split == "all":
            logger.info(
                f"'{source}' has no splits, so accuracy is of all {len(listing.clips):,} clips; those that the network was "
                "trained on, if any, count too"
            )
    clips = [clip for clip in listing.clips if split in ("all", clip.split)]
    if not clips:
        raise UserError(f"no {split} clips in '{source}'; choose another --split")
    if len(clips) < len(listing.clips):
        logger.info(f"'{source}': the {len(clips)} {split} clips of {len(listing.clips)}")
    return clips
