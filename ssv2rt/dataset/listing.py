"""The listing of a data set: its classes, and the file, split and class of each clip. These formats are recognized:

    SSv2            DIR/[labels/]{labels,train,validation[,test]}.json, videos in DIR/videos; or one of these annotation files
    class folders   DIR/train/LABEL/*.mp4, DIR/validation/LABEL/*.mp4, ...; or DIR/LABEL/*.mp4
    table           a .csv, .tsv or .parquet file with the columns path, label and optionally split; or a folder with one
                    such table, or with one for each split (train.csv, val.csv)
    Label Studio    its JSON export, with a choice for each video

If there is no validation split, a tenth of the training clips of each class is held out for it: those with the lowest hash of
their id, so that the choice is the same on every machine. `data.validation_share` of a recipe sets another share.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Accepted names of the splits, in lower case."""
UNLABELED = -1
HELD_OUT_FRACTION = 0.1
METADATA_KEY = b"ssv2rt"
"""Key of the Parquet metadata that marks a manifest. Other Parquet tables may be tables of clips."""
_VIDEOS = (
    "webm mkv mk3d mp4 m4v m4s mov qt 3gp 3g2 f4v flv avi divx wmv asf mpg mpeg mpg2 m1v m2v m2p vob mod tod ts m2t mts m2ts "
    "mxf dv h264 264 avc h265 265 hevc ivf av1 obu mjpeg mjpg y4m gif apng ogv ogm rm rmvb"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEOS.split())
"""Extensions of videos, in lower case: what is looked for in folders and tar files by every command."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Extensions of frames that were extracted from a video. Folders of them are not clips."""


@dataclass(frozen=True)
class Clip:
    """One clip, as its data set describes it."""

    id: str
    """Unique within the data set."""
    path: str
    """Relative to the listing's folder, or absolute."""
    split: str
    label: int
    """Class number, or `UNLABELED`."""


@dataclass(frozen=True)
class Listing:
    """All clips of a data set."""

    labels: tuple[str, ...]
    """Class names."""
    folder: Path
    """What paths are relative to."""
    clips: list[Clip]
    sources: list[Path]
    """Files and folders that the listing was read from. While they are unchanged, so is the listing."""


def fingerprint(folder: Path, sources: Iterable[Path]) -> str:
    """A hash of the names, sizes and modification times of files, and of the names of the entries of folders."""
    facts = hashlib.blake2b(digest_size=16)
    for path in sources:
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        try:
            if path.is_dir():
                state = "/".join(entry.name for entry in list_entries(path))
            else:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "gone"
        facts.update(f"{name}: {state}\n".encode(errors="surrogateescape"))
    return facts.hexdigest()


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """The subfolders and videos of a folder, sorted by name, without hidden ones. Warns if the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".") and (is_video(e.name) or is_folder(e))]
    except OSError as error:
        logger.warning(f"cannot list '{escape_non_utf8(str(folder))}' ({error.strerror}); it is left out")
        return []
    return sorted(found, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. Links that lead nowhere or to themselves are not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def escape_non_utf8(name: str) -> str:
    """A file name as valid UTF-8: other bytes are escaped like \\xff."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def path_to_text(path: str) -> str:
    """A path as valid UTF-8, from which `text_to_path` makes the same path again.

    Bytes that are not UTF-8 are escaped, as by `escape_non_utf8`. So that no two paths give the same text, a backslash is
    escaped as \\x5c where the path itself has what looks like an escape.
    """
    if path.isascii() and "\\" not in path:
        return path  # as most paths are: there may be hundreds of thousands
    return escape_non_utf8(_ESCAPE.sub(r"\\x5c\1", path))


def text_to_path(text: str) -> str:
    """The path that `path_to_text` made a text of."""
    return os.fsdecode(_ESCAPE_BYTES.sub(lambda escape: bytes.fromhex(escape[1][1:].decode()), text.encode()))


_ESCAPE = re.compile(r"\\(x(?:5c|[89a-f][0-9a-f]))")
_ESCAPE_BYTES = re.compile(_ESCAPE.pattern.encode())


def find_picture(folder: Path) -> Path | None:
    """A picture in a folder, to tell that it holds the frames of a video; None if there is none."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(PICTURE_SUFFIXES)]
        return folder / min(names) if names else None
    return None


def encode_frames(picture: Path) -> str:
    """What to do about a folder of pictures, as the end of a message."""
    pattern = picture.parent / f"*{picture.suffix}"
    # As they are: encoding loses quality, and ffmpeg's default encoder takes no odd width, which many frames of SSv2 have.
    return (
        f"make a video of each folder's frames: ffmpeg -framerate 12 -pattern_type glob -i '{pattern}' -c copy clip.mkv"
    )


def is_video(name: str) -> bool:
    """Whether a file has the extension of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def number_classes(rows: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, ...], list[Clip]]:
    """Makes class names and clips from (path, split, label text).

    Classes are sorted alphabetically, or by value if all of them are numbers. An empty label means no label.
    """
    names = sorted(
        {label for _, _, label in rows if label}, key=_label_sort_key({label for _, _, label in rows if label})
    )
    number = {name: at for at, name in enumerate(names)} | {"": UNLABELED}
    return tuple(names), [Clip(path, path, split, number[label]) for path, split, label in rows]


def hold_out_validation(clips: list[Clip], share: float = HELD_OUT_FRACTION) -> list[Clip]:
    """Moves some training clips to the validation split if that is empty; see the module's docstring.

    Args:
        clips: all clips of a data set.
        share: of the clips of each class, at least one and not all; between 0 and 1.
    """
    if any(clip.split == "validation" for clip in clips):
        return clips
    classes: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.split == "train" and clip.label != UNLABELED:
            classes[clip.label].append(clip)
    held: set[str] = set()
    for members in classes.values():
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held |= {clip.id for clip in sorted(members, key=_hold_out_key)[:count]}
    return [Clip(c.id, c.path, "validation", c.label) if c.id in held else c for c in clips]


def _hold_out_key(clip: Clip) -> bytes:
    return hashlib.blake2b(clip.id.encode(errors="surrogateescape"), digest_size=8).digest()


def _label_sort_key(labels: set[str]) -> Callable[[str], Any]:
    """The sort key for class names."""
    if labels and all(label.isdecimal() for label in labels):
        return lambda label: (
            len(label.lstrip("0")),
            label.lstrip("0"),
            label,
        )  # by value, without the limit of `int` on digits
    return str
