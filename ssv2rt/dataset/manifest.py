"""The manifest: one row per annotated clip, probed once and kept in a Parquet file beside the data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssv2rt.dataset.annotations import Annotations, read_annotations
from ssv2rt.dataset.labels import mirrored_labels
from ssv2rt.dataset.probe import CLIP_ERRORS, probe, reason_of
from ssv2rt.errors import UserError
from ssv2rt.runs import cache_folder, whole_file

OK = "ok"

_FILE = "manifest.parquet"
_MARK = b"ssv2rt"
_CHUNK = 512

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("status", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("rate", pa.float32()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True)
class Split:
    """The usable clips of one split, as columns. N rows."""

    labels: tuple[str, ...]
    """Class names."""
    folder: Path
    ids: pa.Array
    """string (N,)"""
    classes: np.ndarray
    """int32 (N,): class numbers, -1 where unknown."""
    frames: np.ndarray
    """int32 (N,)"""
    widths: np.ndarray
    heights: np.ndarray

    @cached_property
    def mirrored(self) -> np.ndarray:
        """int32 (classes,): see `mirrored_labels`."""
        return mirrored_labels(self.labels)

    def __len__(self) -> int:
        return len(self.classes)

    def path(self, row: int) -> Path:
        return self.folder / f"{self.ids[row].as_py()}.webm"


@dataclass(frozen=True)
class Manifest:
    """All annotated clips of a data set."""

    labels: tuple[str, ...]
    folder: Path
    table: pa.Table

    def split(self, name: str, max_bad: float = 1.0) -> Split:
        """The usable clips of a split.

        Args:
            name: train, validation or test.
            max_bad: largest share of its clips that may be missing or unreadable.

        Raises:
            UserError: more than that are, or none is left.
        """
        rows = self.table.filter(pc.equal(self.table["split"], name))
        good = rows.filter(pc.equal(rows["status"], OK))
        bad = len(rows) - len(good)
        if bad and (bad > max_bad * len(rows) or not len(good)):
            worst = rows.filter(pc.not_equal(rows["status"], OK)).slice(0, 1).to_pylist()[0]
            raise UserError(
                f"{bad} of {len(rows)} {name} clips cannot be used, such as "
                f"'{self.folder / worst['id']}.webm': {worst['status']}; at most {max_bad:.2%} may be (data.max_bad); "
                f"add the missing videos, or raise data.max_bad"
            )
        if not len(good):
            raise UserError(f"no {name} clips in '{self.folder}'; this needs the split's annotations and videos")
        column = {key: good[key].to_numpy() for key in ("label", "frames", "width", "height")}
        return Split(
            self.labels,
            self.folder,
            good["id"].combine_chunks(),
            column["label"],
            column["frames"],
            column["width"],
            column["height"],
        )


def open_manifest(root: Path, *, workers: int = 0, progress: Progress = lambda done, total: None) -> Manifest:
    """The manifest of the data in `root`: read if it is there and fits the annotations, made or completed if not.

    Clips probed before are not probed again unless their file has changed, and an interrupted call keeps what it has
    found.

    Args:
        root: folder with SSv2's JSON files and videos.
        workers: threads that read files; 0 for four a core.
        progress: told how far probing is.

    Raises:
        UserError: `root` is not such a folder.
    """
    annotations = read_annotations(root)
    digest = _digest(annotations)
    table = _saved(root)
    fits = (table.schema.metadata or {}).get(_MARK) == digest
    if fits and pc.all(pc.equal(table["status"], OK)).as_py():
        return Manifest(annotations.labels, annotations.videos, table)
    known = {str(row["id"]): row for row in table.to_pylist()}
    wanted = [(clip, split, label) for split, clips in annotations.splits.items() for clip, label in clips]
    rows: list[dict[str, object]] = []
    pool = ThreadPoolExecutor(workers or 4 * (os.cpu_count() or 1))
    try:
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            rows += pool.map(lambda clip: _row(annotations.videos, known, fits, *clip), chunk)
            progress(len(rows), len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
        mark = digest if len(rows) == len(wanted) else b"interrupted"
        table = pa.Table.from_pylist(rows, _SCHEMA).replace_schema_metadata({_MARK: mark})
        _save(root, table)
    return Manifest(annotations.labels, annotations.videos, table)


def _row(
    folder: Path, known: dict[str, dict[str, object]], trust: bool, clip: str, split: str, label: int
) -> dict[str, object]:
    """One clip's row: what is known of it if its file is the same (or `trust` says so), else what probing finds."""
    path = folder / f"{clip}.webm"
    before = known.get(clip)
    if trust and before and before["status"] == OK:
        return before
    row: dict[str, object] = {"id": clip, "split": split, "label": label, "status": OK}
    try:
        stat = path.stat()
        row |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if before and (before["bytes"], before["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            return before | {"split": split, "label": label}
        info = probe(path)
        row |= {key: getattr(info, key) for key in ("codec", "width", "height", "frames", "rate")}
    except CLIP_ERRORS as error:
        row["status"] = reason_of(error)
    return row


def _places(root: Path) -> list[Path]:
    """Where the manifest of `root` may be: beside the data, or in the cache for data that cannot be written to."""
    key = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    return [root / _FILE, cache_folder() / "manifests" / key / _FILE]


def _saved(root: Path) -> pa.Table:
    for path in _places(root):
        with contextlib.suppress(OSError, pa.ArrowException, KeyError):  # a broken manifest is made again
            table = pq.read_table(path, columns=_SCHEMA.names)
            return table.cast(_SCHEMA.with_metadata(table.schema.metadata))
    return _SCHEMA.empty_table()


def _save(root: Path, table: pa.Table) -> None:
    beside, cached = _places(root)
    try:
        _write(beside, table)
    except OSError:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _write(cached, table)


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def _digest(annotations: Annotations) -> bytes:
    """Changes whenever the annotations name other clips or classes."""
    content = json.dumps([annotations.labels, annotations.splits], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest().encode()
