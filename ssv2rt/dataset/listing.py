"""What a data set says of itself: its classes, and the file, split and class of each clip. Three kinds are recognised.

    SSv2            DIR/[labels/]{labels,train,validation[,test]}.json, videos in DIR/videos
    class folders   DIR/train/LABEL/*.mp4, DIR/validation/LABEL/*.mp4, ...; or DIR/LABEL/*.mp4
    table           a .csv or .parquet file with the columns path, label and perhaps split; or a folder with one such
                    table, or with one for each split (train.csv, val.csv)

Where no clip is said to be for validation, a tenth of each class of the training clips is held out for it: those whose
path has the lowest hash, so that the choice is the same on every machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call the splits, in lower case."""
UNLABELLED = -1
HELD_OUT = 0.1
MARK = b"ssv2rt"
"""Where a manifest keeps what it is made of; a table that has it is none of clips."""
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("webm", "mp4", "m4v", "mov", "qt", "avi", "divx", "mkv", "mpg", "mpeg", "mpg2", "m2v", "mjpeg", "mjpg", "ts"),
        *("mts", "m2ts", "vob", "wmv", "asf", "flv", "f4v", "3gp", "3g2", "ogv", "gif", "mxf", "ivf", "y4m", "h264"),
        *("264", "h265", "265", "rm", "rmvb"),
    )
)


@dataclass(frozen=True)
class Clip:
    """One clip as its data set names it."""

    id: str
    """Unique within the data set."""
    path: str
    """Relative to the listing's folder, or absolute."""
    split: str
    label: int
    """Class number, or `UNLABELLED`."""


@dataclass(frozen=True)
class Listing:
    """All clips of a data set."""

    labels: tuple[str, ...]
    """Class names."""
    folder: Path
    """What paths are relative to."""
    clips: list[Clip]
    sources: list[Path]
    """Files and folders that tell all this: as long as they are unchanged, so is the listing."""


def fingerprint(folder: Path, sources: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of change of files, and of what folders have in them."""
    facts = hashlib.blake2b(digest_size=16)
    for path in sources:
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        try:
            if path.is_dir():
                state = "/".join(entry.name for entry in entries_of(path))
            else:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "gone"
        facts.update(f"{name}: {state}\n".encode(errors="surrogateescape"))
    return facts.hexdigest()


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The folders and videos in a folder, by name; not what is hidden. A folder that may not be read has none."""
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".") and (is_video(e.name) or e.is_dir())]
    except PermissionError:
        logger.warning(f"no permission to look into '{folder}'; it is left out")
        return []
    return sorted(found, key=lambda entry: entry.name)


def as_text(name: str) -> str:
    """A file's name as text that every format can hold: bytes that are no UTF-8 are written \\xff."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def is_video(name: str) -> bool:
    """Whether a file is called like a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def named_classes(rows: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, ...], list[Clip]]:
    """Classes and clips from (path, split, label text).

    Classes are in alphabetical order, or by value if all of them are numbers. A label that is empty is none.
    """
    names = sorted({label for _, _, label in rows if label}, key=_order({label for _, _, label in rows if label}))
    number = {name: at for at, name in enumerate(names)} | {"": UNLABELLED}
    return tuple(names), [Clip(path, path, split, number[label]) for path, split, label in rows]


def hold_out(clips: list[Clip]) -> list[Clip]:
    """The clips with some of the training clips moved to validation, if none is there. See the module."""
    if any(clip.split == "validation" for clip in clips):
        return clips
    classes: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.split == "train" and clip.label != UNLABELLED:
            classes[clip.label].append(clip)
    held: set[str] = set()
    for members in classes.values():
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        held |= {clip.id for clip in sorted(members, key=_hash)[:count]}
    return [Clip(c.id, c.path, "validation", c.label) if c.id in held else c for c in clips]


def check_ids(clips: Iterable[Clip], source: Path) -> None:
    """Raises UserError where a clip is named twice."""
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise UserError(f"{source}: clip '{clip.id}' is named twice; every clip may stand once")
        seen.add(clip.id)


def _hash(clip: Clip) -> bytes:
    return hashlib.blake2b(clip.id.encode(errors="surrogateescape"), digest_size=8).digest()


def _order(labels: set[str]) -> Callable[[str], Any]:
    """What class names are sorted by."""
    if labels and all(label.isdecimal() for label in labels):
        return lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)  # by value, however long
    return str
