"""The data set that is repacked."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ssv2rt.core.errors import UsageError
from ssv2rt.core.progress import Progress
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.listing import text_to_path
from ssv2rt.dataset.manifest import SCHEMA, Manifest
from ssv2rt.repack.data_set import check_splits
from ssv2rt.repack.encode import Task
from ssv2rt.repack.records import Record, settings_file
from ssv2rt.repack.settings import Settings
from ssv2rt.video.container import OK
from ssv2rt.video.probe import VideoMeta


def open_source(data: Path, out: Path) -> Manifest:
    """The data set to repack, probed.

    Raises:
        UsageError: one of the folders is in the other.
        UserError: `data` is not a data set that SSv2's layout can hold.
    """
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(data))
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UsageError(f"OUT '{out}' and DATA '{data}' lie in each other; choose a folder outside of the data set")
    with Progress(f"indexing {data}") as progress:
        manifest = open_manifest(data, columns=SCHEMA.names, progress=progress.show)
    check_splits(manifest)
    return manifest


def source_name(data: Path) -> Path:
    """What a data set is called in repack.json."""
    return Path(os.path.abspath(data))


def short_side_of(source: Manifest) -> int | None:
    """The --short-side that a data set was itself repacked with; None if it was not.

    Its manifest has the size of the original frames, and not that of its files.
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        return int(json.loads(settings_file(source.folder).read_text(encoding="utf-8"))["short_side"])
    return None


def frames_in_words(source: Manifest, settings: Settings) -> str:
    """In which size the frames of a data set are kept."""
    good = source.table.filter(pc.equal(source.table["status"], OK))
    sides = np.minimum(good["width"].to_numpy(), good["height"].to_numpy())
    scaled = int((sides > settings.short_side).sum())
    if not scaled:
        return f"kept in their size, as no clip is larger than {max(sides, default=0)} pixels on its shorter side"
    whole = f"scaled to {settings.short_side} pixels on their shorter side"
    return whole if scaled == len(sides) else f"those of {scaled:,} of {len(sides):,} clips {whole}, the others kept"


class SourceClips:
    """The clips of a manifest, by row."""

    def __init__(self, source: Manifest) -> None:
        self._folder = source.folder
        names = ("id", "path", "status", "frames", "width", "height", "duration", "bytes", "hash", "mtime_ns")
        self._columns: dict[str, list[Any]] = {name: source.table[name].to_pylist() for name in names}
        self._times = source.table["times"].combine_chunks()
        self.ids: list[str] = self._columns["id"]
        self.statuses: list[str] = self._columns["status"]

    def meta(self, row: int) -> VideoMeta:
        frames, width, height, duration = (
            self._columns[name][row] for name in ("frames", "width", "height", "duration")
        )
        times = self._times[row].values
        return VideoMeta(frames, width, height, duration, None if times is None else times.to_numpy())

    def task(self, row: int, target: Path) -> Task:
        """The task that repacks a clip."""
        return Task(self._folder / text_to_path(self._columns["path"][row]), target, self.meta(row))

    def origin(self, row: int) -> Record:
        """What identifies a clip's source."""
        columns = {
            "id": "id",
            "source": "path",
            "source_bytes": "bytes",
            "source_hash": "hash",
            "source_mtime_ns": "mtime_ns",
        }
        return {name: self._columns[column][row] for name, column in columns.items()}
