"""Writes rows to a CSV, Parquet or JSON-lines file, chosen by its extension. The file appears once it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.core.atomic_files import atomic_file, write_json
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.scoring.metadata import KEY, Metadata, metadata_file
from ssv2rt.scoring.row import SECONDS, VECTOR, Row, column_type


class Writer(Protocol):
    def write(self, rows: list[Row]) -> None: ...


def check_output(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Checks, before any work is done, that the output can be written.

    Args:
        path: the output.
        overwrite: whether an existing file is replaced.
        option: what names the output, for messages.

    Raises:
        UsageError: the extension is unknown, the folder does not exist, or the file exists and `overwrite` is not set.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"{option} {path}: the extension '{path.suffix}' is no format; take {', '.join(_WRITERS)}")
    if len(os.fsencode(path.name)) > 200:
        raise UsageError(f"{option} {path}: the name is longer than 200 bytes; choose a shorter one")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{option} {path} is not a file; name one, or a new one")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{option} {path} exists; choose another name, or add --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no folder '{path.parent}'; make it first")


@contextmanager
def open_writer(path: Path, names: list[str], metadata: Metadata | None = None) -> Iterator[Writer]:
    """A writer of rows with these columns. The file appears under its name if the block ends without an error.

    Its metadata (see `metadata`) appears with it. That of an earlier file is removed first, so that it never stands beside
    another file than its own.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            writer = _WRITERS[path.suffix.lower()](temporary, names, metadata)
            try:
                yield writer
            finally:
                writer.close()
            metadata_file(path).unlink(missing_ok=True)
        if metadata is not None and path.suffix.lower() != ".parquet":
            write_json(metadata_file(path), metadata)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error.strerror or error}; free some space or choose another place"
        ) from None


class _Csv:
    def __init__(self, path: Path, names: list[str], metadata: Metadata | None) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, names, extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()
        # The csv module does not quote a carriage return, but its reader ends a row there.
        self._quoting = csv.DictWriter(
            self._file, names, extrasaction="ignore", lineterminator="\n", quoting=csv.QUOTE_ALL
        )

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            writer = self._quoting if "\r" in row["video"] else self._writer
            writer.writerow({key: _as_csv_text(key, value) for key, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    def __init__(self, path: Path, names: list[str], metadata: Metadata | None) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._columns = names

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            values = {name: _as_json(row.get(name)) for name in self._columns}
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, names: list[str], metadata: Metadata | None) -> None:
        kinds = {int: pa.int32(), float: pa.float32(), str: pa.string(), VECTOR: pa.list_(pa.float32())}
        # float32 cannot represent times in a long video to the millisecond.
        kind = dict.fromkeys(SECONDS, pa.float64())
        self._schema = pa.schema([(name, kind.get(name, kinds[column_type(name)])) for name in names])
        if metadata is not None:
            self._schema = self._schema.with_metadata({KEY: json.dumps(metadata).encode()})
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, rows: list[Row]) -> None:
        self._writer.write_table(pa.Table.from_pylist(rows, self._schema))

    def close(self) -> None:
        self._writer.close()


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _as_csv_text(column: str, value: Any) -> Any:
    if column in SECONDS and value is not None:
        return f"{value:.6f}".rstrip("0").removesuffix(
            "."
        )  # six digits would not distinguish the windows of a long video
    if isinstance(value, (list, np.ndarray)):
        return json.dumps([float(f"{number:.6g}") for number in value])
    return f"{value:.6g}" if isinstance(value, float) else value


_WRITERS: dict[str, type[_Csv] | type[_JsonLines] | type[_Parquet]] = {
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".parquet": _Parquet,
}
