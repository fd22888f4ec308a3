"""Where predictions go: CSV, Parquet or JSON lines, by extension; the file appears when it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.errors import UsageError, UserError
from ssv2rt.runs import whole_file
from ssv2rt.scoring.journal import Row

LOGITS = "logits"


class Sink(Protocol):
    def write(self, rows: list[Row]) -> None: ...


def columns(top_k: int, *, logits: bool = False) -> list[str]:
    """Names of the columns, in order: video, status, frames, label, probability, label_2, probability_2, ..., logits."""
    names = ["video", "status", "frames"]
    for rank in range(1, top_k + 1):
        end = "" if rank == 1 else f"_{rank}"
        names += [f"label{end}", f"probability{end}"]
    return [*names, LOGITS] if logits else names


def check_output(path: Path, *, overwrite: bool) -> None:
    """Before any work is done.

    Raises:
        UsageError: the extension is not a format, the folder does not exist, or the file does and may not be replaced.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"--out {path}: the extension '{path.suffix}' is no format; take {', '.join(_WRITERS)}")
    if len(os.fsencode(path.name)) > 200:
        raise UsageError(f"--out {path}: the name is longer than 200 bytes; choose a shorter one")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"--out {path} is not a file; name one, or a new one")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"--out {path} exists; choose another name, or add --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: no folder '{path.parent}'; make it first")


@contextmanager
def open_sink(path: Path, names: list[str]) -> Iterator[Sink]:
    """A sink for rows of these columns. The file takes its name when the block ends well.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            writer = _WRITERS[path.suffix.lower()](temporary, names)
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error.strerror or error}; free some space or choose another place"
        ) from None


class _Csv:
    def __init__(self, path: Path, names: list[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, names, extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()
        # The csv module leaves a carriage return bare, and its own reader then ends the row there.
        self._quoting = csv.DictWriter(
            self._file, names, extrasaction="ignore", lineterminator="\n", quoting=csv.QUOTE_ALL
        )

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            writer = self._quoting if "\r" in row["video"] else self._writer
            writer.writerow({key: _as_text(value) for key, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    def __init__(self, path: Path, names: list[str]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._columns = names

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            self._file.write(json.dumps({name: row.get(name) for name in self._columns}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, names: list[str]) -> None:
        kinds = {"frames": pa.int32(), LOGITS: pa.list_(pa.float32())}
        self._schema = pa.schema(
            [(name, kinds.get(name, pa.float32() if name.startswith("probability") else pa.string())) for name in names]
        )
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, rows: list[Row]) -> None:
        self._writer.write_table(pa.Table.from_pylist(rows, self._schema))

    def close(self) -> None:
        self._writer.close()


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps([float(f"{number:.6g}") for number in value])
    return f"{value:.6g}" if isinstance(value, float) else value


_WRITERS: dict[str, type[_Csv] | type[_JsonLines] | type[_Parquet]] = {
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".parquet": _Parquet,
}
