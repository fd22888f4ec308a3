"""Data sets given as tables: columns path, label and perhaps split, in CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.dataset.listing import MARK, SPLIT_NAMES, Listing, check_ids, hold_out, named_classes

TABLE_SUFFIXES = (".csv", ".parquet")


def read_tables(root: Path) -> Listing | None:
    """The clips of a table, or of the tables in a folder; None if it has none.

    Paths are relative to the table's folder, or absolute.

    Raises:
        UserError: a table cannot be read, lacks a column, or names a split that there is not.
    """
    if root.is_dir():
        folder = root
        tables = [path for path in sorted(root.iterdir()) if _is_table(path)]
        files = [(p, SPLIT_NAMES[p.stem.lower()]) for p in tables if p.stem.lower() in SPLIT_NAMES]
        if not files and len(tables) > 1:
            names = ", ".join(path.name for path in tables)
            raise UserError(f"'{root}' has several tables of clips: {names}; give --data the one that is meant")
        files = files or [(path, "") for path in tables]
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
    names = [name.strip().lower() for name in table.column_names]
    for column in ("path", "label"):
        if names.count(column) != 1:
            has = "no column" if column not in names else "more than one column"
            raise UserError(f"{path}: has {has} '{column}'; expected the columns path, label and perhaps split")
    if not len(table):
        raise UserError(f"{path}: names no clips; expected a row for each")
    columns = {n: _texts(table.column(names.index(n)), path, n) for n in ("path", "label", "split") if n in names}
    labels = [text.strip() for text in columns["label"]]
    splits = [split or "train"] * len(table)
    if "split" in columns:
        for at, text in enumerate(columns["split"]):
            if text.strip().lower() not in SPLIT_NAMES:
                raise UserError(f"{path}: row {at + 1} has the split '{text}'{suggest(text, list(SPLIT_NAMES))}")
            splits[at] = SPLIT_NAMES[text.strip().lower()]
    for at, text in enumerate(columns["path"]):
        if not text.strip() or "\0" in text:
            raise UserError(f"{path}: row {at + 1} has no path; every clip needs one")
    return list(zip(columns["path"], splits, labels, strict=True))


def _texts(column: pa.ChunkedArray, path: Path, name: str) -> list[str]:
    if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
        raise UserError(f"{path}: column '{name}' holds {column.type}; expected text")
    return ["" if value is None else value for value in column.cast(pa.string()).to_pylist()]


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.ParquetFile(path).read()
        text = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in _header(path)}, strings_can_be_null=False
        )
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(path, convert_options=text, parse_options=parse)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}; expected a table of clips") from None


def _header(path: Path) -> list[str]:
    with pyarrow.csv.open_csv(path) as reader:
        return list(reader.schema.names)


def _is_table(path: Path) -> bool:
    """Whether a file is a table of clips, and none of those that `ssv2rt index` writes."""
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        return False
    try:
        if path.suffix.lower() == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            names = [] if MARK in (schema.metadata or {}) else schema.names
        else:
            names = [] if path.name.endswith("quarantine.csv") else _header(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    return {"path", "label"} <= {name.strip().lower() for name in names}
