"""Merges several output files of scoring into one, such as those of the shards of a job array."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.progress import Progress
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.metadata import merged_metadata
from ssv2rt.scoring.row import PREDICTED, SECONDS, VECTOR, Row, column_type
from ssv2rt.scoring.sqlite_store import SortedRows
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.writers import open_writer
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)


_ROWS_IN_MEMORY = 1000
_AFTER_ALL_WINDOWS = 2**62
"""Sort key of a video's error row, which comes after its windows."""
_UTF8 = "utf-8-sig"
"""Spreadsheets write a byte order mark."""


@dataclass
class MergeResult:
    """Counts of a merge."""

    videos: int = 0
    errors: int = 0
    duplicates: int = 0
    """Videos in several parts. The first `ok` row is kept; if there is none, the first row."""
    missing: int = 0
    """Expected videos that are in no part."""


def merge(parts: Sequence[Path], out: Path, expected: Iterable[Video] = ()) -> MergeResult:
    """Writes the rows of all parts to one file, sorted by video name, and logs duplicate and missing videos.

    Raises:
        UserError: a part cannot be read, its columns differ from the first one's or it is of another network (see
            `merged_metadata`), or the disk is full.
    """
    try:
        return _merge(parts, out, expected)
    except OSError as error:
        raise UserError(f"cannot merge into '{out}': {error.strerror or error}; make room") from None


def _merge(parts: Sequence[Path], out: Path, expected: Iterable[Video]) -> MergeResult:
    metadata = merged_metadata(parts)
    merged, rows = MergeResult(), SortedRows()
    duplicates, missing = _NameReport("in several parts"), _NameReport("in no part")
    columns: list[str] = []
    kept = 0
    with Progress("reading parts", None, unit="rows") as progress:
        for part in parts:
            names, found = read_output(part)
            if columns and names != columns:
                raise UserError(
                    f"'{part}' has other columns than '{parts[0]}': {', '.join(names)}; score all parts with the same options"
                )
            columns = names
            for row in found:
                name = row["video"]
                # Windows of a video are identified by their start. An error row without a start comes last.
                start = (
                    0 if "start" not in columns else round(row["start"] * 1e6) if "start" in row else _AFTER_ALL_WINDOWS
                )
                if rows.add(name, start, row, good=row["status"] == OK):
                    kept += 1
                else:
                    duplicates.add(name)
                progress.add(1)
    ordered = iter(rows)
    last = ""
    with open_writer(out, columns, metadata) as writer, Progress(f"writing {out.name}", kept, unit="rows") as progress:
        while batch := list(islice(ordered, _ROWS_IN_MEMORY)):
            writer.write(batch)
            progress.add(len(batch))
            for row in batch:
                merged.videos += row["video"] != last
                merged.errors += row["status"] != OK
                last = row["video"]
    for video in expected:
        if (name := escape_non_utf8(video.name)) not in rows:
            missing.add(name)
    merged.duplicates, merged.missing = duplicates.end(), missing.end()
    return merged


class _NameReport:
    """Logs the first ten of many names, and counts all of them."""

    def __init__(self, what: str) -> None:
        self._what, self._count, self._last = what, 0, ""

    def add(self, name: str) -> None:
        if name != self._last:
            self._last, self._count = name, self._count + 1
            if self._count <= 10:
                logger.warning(f"{self._what}: {name}")

    def end(self) -> int:
        if self._count > 10:
            logger.warning(f"{self._what}: {self._count - 10} more")
        return self._count


def read_output(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The columns of an output of scoring, and an iterator that reads its rows.

    Raises:
        UserError: the file is not an output of scoring (raised by the call), or is damaged (raised while iterating).
    """
    reader = {".parquet": _parquet, ".jsonl": _jsonl}.get(path.suffix.lower(), _csv)
    rows = _with_read_errors(path, _validated(reader(path)))
    names: list[str] = next(rows, [])
    if not {"video", "status"} <= set(names):
        raise UserError(f"'{path}' is not an output of `ssv2rt score`: it lacks the columns video and status")
    return names, rows


def _with_read_errors(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except (OSError, ValueError, csv.Error, AttributeError, pa.ArrowException) as error:
        raise UserError(f"cannot read '{path}': {one_line(error)}; give outputs of `ssv2rt score`") from None


def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield file.schema_arrow.names
        for batch in file.iter_batches(_ROWS_IN_MEMORY):
            yield from (_without_nulls(row) for row in batch.to_pylist())


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding=_UTF8, newline="\n") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            if not number:
                yield list(row.keys())
            yield _without_nulls(row)


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding=_UTF8, newline="") as file:
        reader = csv.DictReader(_whole_lines(file), strict=True)
        yield list(reader.fieldnames or [])
        yield from map(_from_text, reader)


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if not line.endswith(("\n", "\r")):
            raise ValueError("its last line has no line end; the file may be truncated")
        yield line


def _validated(rows: Iterator[Any]) -> Iterator[Any]:
    """Passes on column names and rows; raises ValueError where a value is missing or has the wrong type for its column."""
    names: list[str] = next(rows, [])
    yield names
    predicted = (*PREDICTED, *(SECONDS if SECONDS[0] in names else ()))
    for row in rows:
        for name in ("video", "status", *(predicted if row.get("status") == OK else ())):
            if name not in row:
                raise ValueError(f"the row of {row.get('video')!r} has no {name}")
        for name, value in row.items():
            kind = column_type(name)
            if kind is int and isinstance(value, float) and value.is_integer():
                row[name] = int(value)  # as pandas writes a column that is empty in some rows
            elif name not in names or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"a row has {value!r} for {name}")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"a row has {value} for {name}")
        yield row


def _without_nulls(row: dict[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _from_text(row: dict[str, str]) -> Row:
    if None in row or None in row.values():
        raise ValueError("a row has more or fewer values than there are columns; the file may be truncated")
    found: Row = {}
    for name, text in row.items():
        if text == "" and name != "video":
            continue
        kind = column_type(name)
        found[name] = json.loads(text) if kind is VECTOR else text if kind is str else float(text)
    return found
