"""Several output files of scoring into one: the shares of a job array, say."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.dataset.listing import as_text
from ssv2rt.errors import UserError
from ssv2rt.scoring.journal import Row
from ssv2rt.scoring.sinks import LOGITS, open_sink

_AT_ONCE = 1000


@dataclass(frozen=True)
class Merged:
    """What there was."""

    videos: int
    errors: int
    doubled: list[str]
    """Videos that several parts have. The first row that is `ok` counts, or else the first."""
    missing: list[str]
    """Videos that were expected and are in no part."""


def merge(parts: Sequence[Path], out: Path, expected: Iterable[Path] = ()) -> Merged:
    """Writes one file with the rows of all parts, in the order of their videos' names.

    Raises:
        UserError: a part cannot be read, or has other columns than the first.
    """
    rows: dict[str, Row] = {}
    doubled: dict[str, None] = {}
    columns: list[str] = []
    for part in parts:
        names, found = _read(part)
        if columns and names != columns:
            raise UserError(
                f"'{part}' has other columns than '{parts[0]}': {', '.join(names)}; score all parts with the same options"
            )
        columns = names
        for row in found:
            name = row["video"]
            if name in rows:
                doubled[name] = None
            if name not in rows or (rows[name]["status"] != "ok" and row["status"] == "ok"):
                rows[name] = row
    ordered = iter(rows[name] for name in sorted(rows))
    with open_sink(out, columns) as sink:
        while some := list(islice(ordered, _AT_ONCE)):
            sink.write(some)
    missing = [name for path in expected if (name := as_text(str(path))) not in rows]
    errors = sum(row["status"] != "ok" for row in rows.values())
    return Merged(len(rows), errors, list(doubled), missing)


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and rows of an output of scoring."""
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            names, rows = table.column_names, [_there(row) for row in table.to_pylist()]
        elif path.suffix == ".jsonl":
            values = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            names, rows = list(values[0]) if values else [], [_there(row) for row in values]
        else:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                rows = [_from_text(row) for row in reader]
                names = list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}; give outputs of `ssv2rt score`") from None
    if not {"video", "status"} <= set(names):
        raise UserError(f"'{path}' is no output of `ssv2rt score`: it has no columns video and status")
    return names, rows


def _there(row: dict[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _from_text(row: dict[str, str]) -> Row:
    found: Row = {}
    for name, text in row.items():
        if text == "" and name != "video":
            continue
        if name == "frames":
            found[name] = int(text)
        elif name == LOGITS:
            found[name] = json.loads(text)
        else:
            found[name] = float(text) if name.startswith("probability") else text
    return found
