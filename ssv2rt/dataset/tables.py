"""Data sets given as tables: columns path, label and perhaps split, in CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ssv2rt.dataset.listing import SPLIT_NAMES, Listing, check_ids, hold_out, named_classes
from ssv2rt.errors import UserError, choices

TABLE_SUFFIXES = (".csv", ".parquet")


def read_tables(root: Path) -> Listing | None:
    """The clips of a table, or of the tables in a folder; None if it has none.

    Paths are relative to the table's folder, or absolute.

    Raises:
        UserError: a table cannot be read, lacks a column, or names a split that there is not.
    """
    if root.is_dir():
        by_split = {
            SPLIT_NAMES[path.stem.lower()]: path
            for path in sorted(root.iterdir())
            if path.suffix.lower() in TABLE_SUFFIXES and path.stem.lower() in SPLIT_NAMES and _has_columns(path)
        }
        others = [p for p in sorted(root.iterdir()) if p.suffix.lower() in TABLE_SUFFIXES and _has_columns(p)]
        if not by_split and len(others) > 1:
            names = ", ".join(path.name for path in others)
            raise UserError(f"'{root}' has several tables of clips: {names}; give --data the one that is meant")
        files = [(path, split) for split, path in by_split.items()] or [(path, "") for path in others]
        folder = root
    else:
        files, folder = [(root, "")], root.parent
    if not files:
        return None
    rows: list[tuple[str, str, str]] = []
    for path, split in files:
        rows += _rows(path, split)
    labels, clips = named_classes(rows)
    check_ids(clips, files[0][0])
    return Listing(labels, folder, hold_out(clips), [path for path, _ in files])


def _rows(path: Path, split: str) -> list[tuple[str, str, str]]:
    table = _read(path)
    names = {name.strip().lower(): name for name in table.column_names}
    for column in ("path", "label"):
        if column not in names:
            raise UserError(f"{path}: has no column '{column}'; expected the columns path, label and perhaps split")
    if not len(table):
        raise UserError(f"{path}: names no clips; expected a row for each")
    columns = {name: _texts(table[names[name]]) for name in ("path", "label", "split") if name in names}
    splits = [split or "train"] * len(table)
    if "split" in columns:
        for at, text in enumerate(columns["split"]):
            if text.lower() not in SPLIT_NAMES:
                raise UserError(f"{path}: row {at + 1} has the split '{text}'{choices(text, list(SPLIT_NAMES))}")
            splits[at] = SPLIT_NAMES[text.lower()]
    for at, text in enumerate(columns["path"]):
        if not text or "\0" in text:
            raise UserError(f"{path}: row {at + 1} has no path; every clip needs one")
    return list(zip(columns["path"], splits, columns["label"], strict=True))


def _texts(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        text = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in _header(path)}, strings_can_be_null=False
        )
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(path, convert_options=text, parse_options=parse)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}; expected a table of clips") from None


def _header(path: Path) -> list[str]:
    with pyarrow.csv.open_csv(path) as reader:
        return list(reader.schema.names)


def _has_columns(path: Path) -> bool:
    """Whether a file is a table of clips, and none of those that `ssv2rt index` writes."""
    if path.name.endswith(("manifest.parquet", "quarantine.csv")):
        return False
    try:
        names = pyarrow.parquet.read_schema(path).names if path.suffix.lower() == ".parquet" else _header(path)
    except (OSError, pa.ArrowException):
        return False
    return {"path", "label"} <= {name.strip().lower() for name in names}
