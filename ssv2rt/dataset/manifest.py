"""The manifest: a Parquet file beside a data set, with one row per clip.

A row holds a clip's path, split and label, and the results of probing it. Training and evaluation read no other metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.core.errors import UserError
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.dataset.labels import mirrored_labels
from ssv2rt.dataset.listing import METADATA_KEY, SPLITS, fingerprint, text_to_path
from ssv2rt.video.container import OK
from ssv2rt.video.probe import VideoMeta

CLIP_FIELDS = pa.schema([("id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("label", pa.int32())])
"""Columns from the data set's listing. `path` is relative to `Manifest.folder`, or absolute; see `listing.path_to_text`.
`label` is -1 if unknown."""
PROBE_FIELDS = pa.schema(
    [
        ("status", pa.string()),  # ok, or why the clip is unusable
        ("suspicion", pa.string()),  # what is suspicious about a usable clip; mostly empty
        ("container", pa.string()),
        ("codec", pa.string()),
        ("profile", pa.string()),
        ("pixels", pa.string()),
        ("width", pa.int32()),  # after rotation
        ("height", pa.int32()),
        ("matrix", pa.string()),  # bt601, bt709, ...
        ("rotation", pa.int32()),  # degrees, counter-clockwise
        ("frames", pa.int32()),
        ("rate", pa.float32()),  # frames per second
        ("duration", pa.float32()),  # seconds
        ("times", pa.list_(pa.float32())),  # each frame's time in seconds; null if evenly spaced
        ("key_frames", pa.int32()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("hash", pa.string()),  # see `content_hash`
        ("decoded", pa.bool_()),  # whether decoding every frame was tried
    ]
)
"""Columns with the results of probing."""
SCHEMA = pa.unify_schemas([CLIP_FIELDS, PROBE_FIELDS])

TRAINING_COLUMNS = (*CLIP_FIELDS.names, "status", "width", "height", "frames", "duration", "times")
"""The columns that training and evaluation need."""

REPACK_SETTINGS = "repack.json"
"""A file in data sets that `ssv2rt repack` has written. Their manifests have the size of the original frames."""

VERSION = 3
_READABLE_VERSIONS = (2, 3)
"""Both have the same columns. Version 2 was written when the frames of some videos were counted wrong."""


@dataclass(frozen=True)
class Split:
    """The usable clips of one split, as columns with N rows."""

    labels: tuple[str, ...]
    """Class names."""
    folder: Path
    """What paths are relative to."""
    ids: pa.StringArray
    """(N,): names of the clips, which tell them apart."""
    paths: pa.StringArray
    """(N,): see `path`, which gives the file of a row."""
    classes: np.ndarray
    """int32 (N,): class numbers, -1 where unknown."""
    frames: np.ndarray
    """int32 (N,): number of frames of each video."""
    widths: np.ndarray
    """int32 (N,): pixels of an upright frame, as `heights`."""
    heights: np.ndarray
    """int32 (N,)"""
    durations: np.ndarray
    """float32 (N,): seconds, 0 where unknown."""
    times: pa.ListArray
    """(N,): for each video the seconds from its first frame at which each frame appears; null where they are evenly spaced."""

    @cached_property
    def mirrored(self) -> np.ndarray:
        """int32 (classes,): see `mirrored_labels`."""
        return mirrored_labels(self.labels)

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        return f"<Split of '{self.folder}': {len(self):,} clips, {len(self.labels):,} classes>"

    def digest(self) -> str:
        """A hash of everything that clips are sampled by, for each clip in order: not of the folder, nor of the files."""
        facts = hashlib.blake2b(json.dumps(self.labels).encode(errors="surrogateescape"), digest_size=16)
        for column in (self.classes, self.frames, self.widths, self.heights, self.durations):
            facts.update(column.tobytes())
        facts.update("\0".join(self.ids.to_pylist()).encode())
        facts.update(pc.fill_null(pc.list_value_length(self.times), -1).to_numpy().tobytes())
        facts.update(self.times.flatten().to_numpy(zero_copy_only=False).tobytes())
        return facts.hexdigest()

    def path(self, row: int) -> Path:
        """The video file of a row, from 0 to N - 1."""
        return self.folder / text_to_path(self.paths[row].as_py())

    def video_meta(self, row: int) -> VideoMeta:
        """What sampling a clip needs of the video of a row: `frames`, `width`, `height`, `duration` and `times`."""
        times = self.times[row].values
        return VideoMeta(
            frames=int(self.frames[row]),
            width=int(self.widths[row]),
            height=int(self.heights[row]),
            duration=float(self.durations[row]),
            times=None if times is None else times.to_numpy(),
        )


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set."""

    labels: tuple[str, ...]
    """Class names, in order."""
    folder: Path
    """What paths are relative to."""
    table: pa.Table
    """A row for each clip, also for those that cannot be used. Columns are id, path, split, label (the number of its class),
    status (ok, or why it cannot be used), width, height, frames, duration and others."""
    sources: tuple[str, ...] = ()
    """Files and folders that the listing was read from, relative to `folder`."""
    fingerprint: str = ""
    """Fingerprint of the sources when the manifest was built; empty if building it was interrupted."""
    version: int = VERSION
    """Version of the file that the manifest was read from."""

    def __repr__(self) -> str:
        return f"<Manifest of '{self.folder}': {len(self.table):,} clips, {len(self.labels):,} classes>"

    @property
    def root(self) -> Path:
        """What --data names: the file that alone lists the clips, such as a table, else the folder."""
        return self.folder / self.sources[0] if len(self.sources) == 1 else self.folder

    def is_current(self) -> bool:
        """Whether the manifest is complete and of this version, and its sources have not changed."""
        if self.version != VERSION or not self.fingerprint:
            return False
        return fingerprint(self.folder, [self.folder / source for source in self.sources]) == self.fingerprint

    def all_clips_usable(self) -> bool:
        """Whether every clip is usable."""
        return bool(pc.all(pc.equal(self.table["status"], OK)).as_py())

    def check_classes(self, labels: Sequence[str], whose: str) -> None:
        """Raises UserError, naming the first difference, unless the data has exactly these classes in this order.

        Training that goes on needs this. Elsewhere, classes are matched by name: see `classes.for_classes`.

        Args:
            labels: class names.
            whose: what the class names belong to, for the error message.
        """
        here = self.labels
        if tuple(labels) == here:
            return
        if len(labels) != len(here):
            what = f"there are {len(here)} here, and {len(labels)} there"
        else:
            number = next(n for n, (a, b) in enumerate(zip(here, labels, strict=True)) if a != b)
            what = f"class {number} is '{here[number]}' here, and '{labels[number]}' there"
        raise UserError(f"the classes of '{self.folder}' are not those of {whose}: {what}; give it the right --data")

    def without_labels(self) -> str:
        """That no clip has a label, and what to do, as one line; empty if some have one."""
        if self.labels or not len(self.table):
            return ""
        example = self.table["path"][0].as_py()
        return (
            f"the {len(self.table)} videos in '{self.folder}', such as '{example}', have no labels; move each into a folder "
            f"named after its class, as in '{self.folder}/CLASS/{os.path.basename(example)}', or give --data a table with "
            f"the columns path and label, or SSv2's annotation files"
        )

    def _unusable_share(self, split: str) -> float:
        """Which fraction of the clips of a split cannot be used; 0 if it has none."""
        rows = self.table.filter(pc.equal(self.table["split"], split))
        return len(rows.filter(pc.not_equal(rows["status"], OK))) / max(1, len(rows))

    def split(self, name: str, max_bad: float = 1.0) -> Split:
        """The usable clips of a split.

        Args:
            name: train, validation, test, or all.
            max_bad: largest fraction of its clips that may be missing or unreadable.

        Raises:
            UserError: a larger fraction is unusable, or no usable clip is left.
        """
        kind = "" if name == "all" else f"{name} "
        rows = self.table if name == "all" else self.table.filter(pc.equal(self.table["split"], name))
        good = rows.filter(pc.equal(rows["status"], OK))
        bad = len(rows) - len(good)
        if bad and (bad > max_bad * len(rows) or not len(good)):
            worst = rows.filter(pc.not_equal(rows["status"], OK)).slice(0, 1).to_pylist()[0]
            enough = max(bad / len(rows), *(self._unusable_share(split) for split in ("train", "validation")))
            raise UserError(
                f"{bad} of {len(rows)} {kind}clips cannot be used, such as "
                f"'{self.folder / worst['path']}': {worst['status']}; at most {max_bad:.2%} may be; mend or remove them "
                f"(`ssv2rt index '{self.root}'` lists all), or train without them by "
                f"--set data.max_bad={math.ceil(100 * enough) / 100:g}"
            )
        if not len(good) and (text := self.without_labels()):
            raise UserError(text)
        if not len(good):
            counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(self.table["split"]).to_pylist()}
            there = ", ".join(f"{count} {split}" for split, count in sorted(counts.items())) or "none at all"
            fix = "give data that has them, such as the folder of all annotation files, or take another split"
            if name == "validation" and pc.count_distinct(self.table["label"]).as_py() == len(self.table):
                fix = "they are held out of classes that have at least two clips; add clips"
            raise UserError(f"no {kind}clips in '{self.root}' (there are: {there}); {fix}")
        column = {key: good[key].to_numpy() for key in ("label", "frames", "width", "height", "duration")}
        return Split(
            labels=self.labels,
            folder=self.folder,
            ids=good["id"].combine_chunks(),
            paths=good["path"].combine_chunks(),
            classes=column["label"],
            frames=column["frames"],
            widths=column["width"],
            heights=column["height"],
            durations=column["duration"],
            times=good["times"].combine_chunks(),
        )


def manifest_paths(root: Path) -> list[Path]:
    """Possible paths of a data set's manifest: beside the data, and in the cache for data that is read-only."""
    beside = root / "manifest.parquet" if root.is_dir() else root.with_name(f"{root.name}.manifest.parquet")
    key = hashlib.blake2b(os.path.realpath(root).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return [beside, cache_folder() / "manifests" / key / beside.name]


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, and not another Parquet table."""
    schema = read_schema(path)
    return schema is not None and METADATA_KEY in (schema.metadata or {})


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet table."""
    return read_schema(path) is not None


def read_schema(path: Path) -> pa.Schema | None:
    """The schema of a Parquet table; None if the file is not one. Arrow opens no path that is not UTF-8, so this does."""
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):
        if path.is_file():
            with path.open("rb") as file:
                return pq.read_schema(file)
    return None


def read_manifest(path: Path, columns: Sequence[str] = SCHEMA.names) -> Manifest | None:
    """Reads a manifest, or some of its columns, at least `TRAINING_COLUMNS`.

    Returns:
        None if the file is not a manifest, is damaged, or is of a version other than this one and the last.
    """
    if not path.is_file():
        return None  # opening a pipe would block
    with contextlib.suppress(OSError, pa.ArrowException, LookupError, TypeError, ValueError, RecursionError):
        # `pq.read_table` would add columns for folders like split=train above the file.
        with path.open("rb") as file, pq.ParquetFile(file) as parquet:
            table = parquet.read(columns=list(columns)).select(list(columns))
        facts = json.loads((table.schema.metadata or {})[METADATA_KEY])
        version, labels = facts["version"], tuple(facts["labels"])
        if version not in _READABLE_VERSIONS:
            return None
        table = table.cast(pa.schema([SCHEMA.field(name) for name in columns]))
        _check_metadata(facts)
        _check_rows(table, len(labels))
        return Manifest(
            labels, path.parent / facts["folder"], table, tuple(facts["sources"]), facts["fingerprint"], version
        )
    return None


def _check_metadata(facts: dict[str, Any]) -> None:
    """Raises ValueError or TypeError unless the values are as `write_manifest` writes them."""
    for text in (facts["folder"], facts["fingerprint"], *facts["sources"]):
        _require(b"\0" not in os.fsencode(text))
    for label in facts["labels"]:
        label.encode() if isinstance(label, str) else _require(False)
    _require(isinstance(facts["labels"], list) and isinstance(facts["sources"], list))
    _require(len(set(facts["labels"])) == len(facts["labels"]))


def _check_rows(table: pa.Table, classes: int) -> None:
    """Raises ValueError unless all values are ones that probing clips of so many classes can give."""
    table.validate(full=True)  # texts are UTF-8
    good = table.filter(pc.equal(table["status"], OK))
    for name in table.column_names:
        rows = table if name in _NEVER_NULL else good
        _require(name == "times" or not rows[name].null_count)
    _require(pc.all(pc.is_in(table["split"], pa.array(SPLITS))).as_py() is not False)
    _require(pc.count_distinct(table["id"]).as_py() == len(table))
    _require(not pc.any(pc.match_substring(table["path"], "\0")).as_py())
    _require(
        pc.all(pc.and_(pc.greater_equal(table["label"], -1), pc.less(table["label"], classes))).as_py() is not False
    )
    for name in good.column_names:
        if name in _SMALLEST:
            _require(pc.all(pc.greater_equal(good[name], _SMALLEST[name])).as_py() is not False)
        if pa.types.is_floating(good.schema.field(name).type):
            _require(pc.all(pc.is_finite(good[name])).as_py() is not False)
    uneven = good.filter(pc.is_valid(good["times"]))
    _require(pc.all(pc.equal(pc.list_value_length(uneven["times"]), uneven["frames"])).as_py() is not False)
    times = pc.list_flatten(uneven["times"])
    steps = np.diff(times.to_numpy(), prepend=0.0)
    steps[np.cumsum(uneven["frames"].to_numpy())[:-1]] = 0.0  # from the last frame of a clip to the first of the next
    _require(not times.null_count and bool((steps >= 0).all()) and bool(np.isfinite(steps).all()))


_NEVER_NULL = frozenset({*CLIP_FIELDS.names, "status", "suspicion", "decoded"})
"""Columns that have a value for every clip. The others have one for every usable clip, except `times`."""
_SMALLEST = {"frames": 1, "width": 1, "height": 1, "key_frames": 0, "bytes": 0}


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest atomically. If it lies in the data's folder, that is stored as a relative path, so both can be moved.

    Raises:
        OSError: the file cannot be written.
    """
    folder = os.path.realpath(manifest.folder)
    facts = {
        "version": VERSION,
        "folder": "." if os.path.dirname(os.path.realpath(path)) == folder else folder,
        "labels": manifest.labels,
        "sources": manifest.sources,
        "fingerprint": manifest.fingerprint,
    }
    table = manifest.table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)
