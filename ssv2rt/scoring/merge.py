"""Several output files of scoring into one: the shares of a job array, say."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.core.errors import UserError
from ssv2rt.core.progress import Progress
from ssv2rt.dataset.listing import as_text
from ssv2rt.scoring.row import VECTOR, Row, kind_of
from ssv2rt.scoring.sqlite_store import SortedRows
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.writers import open_writer
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)


_AT_ONCE = 1000
_LAST = 2**62


@dataclass
class Merged:
    """What there was."""

    videos: int = 0
    errors: int = 0
    doubled: int = 0
    """Videos that several parts have. The first row that is `ok` counts, or else the first."""
    missing: int = 0
    """Videos that were expected and are in no part."""


def merge(parts: Sequence[Path], out: Path, expected: Iterable[Video] = ()) -> Merged:
    """Writes one file with the rows of all parts, in the order of their videos' names, and says what is doubled or missing.

    Raises:
        UserError: a part cannot be read, has other columns than the first, or there is no room for temporary files.
    """
    try:
        return _merge(parts, out, expected)
    except OSError as error:
        raise UserError(f"cannot merge into '{out}': {error.strerror or error}; make room") from None


def _merge(parts: Sequence[Path], out: Path, expected: Iterable[Video]) -> Merged:
    merged, rows = Merged(), SortedRows()
    doubled, missing = _Names("in several parts"), _Names("in no part")
    columns: list[str] = []
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
                # Windows of a video are told apart by their beginning; an error ends them.
                start = 0 if "start" not in columns else round(row["start"] * 1e6) if "start" in row else _LAST
                if not rows.add(name, start, row, good=row["status"] == OK):
                    doubled.add(name)
                progress.add(1)
    ordered = iter(rows)
    last = ""
    with open_writer(out, columns) as writer:
        while some := list(islice(ordered, _AT_ONCE)):
            writer.write(some)
            for row in some:
                merged.videos += row["video"] != last
                merged.errors += row["status"] != OK
                last = row["video"]
    for video in expected:
        if (name := as_text(video.name)) not in rows:
            missing.add(name)
    merged.doubled, merged.missing = doubled.end(), missing.end()
    return merged


class _Names:
    """Says the first of many names, and how many there are."""

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
    """The columns and rows of an output of scoring, read as they are needed.

    Raises:
        UserError: it is none, at once; or while it is read, where it is damaged.
    """
    reader = {".parquet": _parquet, ".jsonl": _jsonl}.get(path.suffix.lower(), _csv)
    rows = _readable(path, _checked(reader(path)))
    names: list[str] = next(rows, [])
    if not {"video", "status"} <= set(names):
        raise UserError(f"'{path}' is no output of `ssv2rt score`: it has no columns video and status")
    return names, rows


def _readable(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except (OSError, ValueError, csv.Error, AttributeError, pa.ArrowException) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}; give outputs of `ssv2rt score`") from None


def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield file.schema_arrow.names
        for batch in file.iter_batches(_AT_ONCE):
            yield from (_there(row) for row in batch.to_pylist())


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            if not number:
                yield list(row.keys())
            yield _there(row)


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(_whole_lines(file), strict=True)
        yield list(reader.fieldnames or [])
        yield from map(_from_text, reader)


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if not line.endswith(("\n", "\r")):
            raise ValueError("its last line has no end; it may have been cut short")
        yield line


def _checked(rows: Iterator[Any]) -> Iterator[Any]:
    """Columns and rows, whose values have to be what the columns are for."""
    names: list[str] = next(rows, [])
    yield names
    for row in rows:
        for name in ("video", "status", *row):
            kind = kind_of(name)
            if name not in names or not isinstance(row.get(name), (int, float) if kind is float else kind):
                raise ValueError(f"a row has {row.get(name)!r} for {name}")
        yield row


def _there(row: dict[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _from_text(row: dict[str, str]) -> Row:
    if None in row or None in row.values():
        raise ValueError("a row has more or fewer values than there are columns; it may have been cut short")
    found: Row = {}
    for name, text in row.items():
        if text == "" and name != "video":
            continue
        kind = kind_of(name)
        found[name] = json.loads(text) if kind == VECTOR else kind(text)
    return found
