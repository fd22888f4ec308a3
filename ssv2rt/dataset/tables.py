"""Reads data sets given as CSV or Parquet tables with the columns path, label and optionally split.

The columns of a CSV table may be separated by commas, semicolons or tabs.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.dataset.listing import METADATA_KEY, SPLIT_ALIASES, Listing, check_ids, hold_out_validation, number_classes

TABLE_SUFFIXES = (".csv", ".parquet")


def read_tables(root: Path) -> Listing | None:
    """The clips of a table, or of the tables in a folder; None if the folder has no table of clips.

    Paths are relative to the table's folder, or absolute.

    Raises:
        UserError: a table cannot be read, lacks a column, or names an unknown split.
    """
    if root.is_dir():
        folder = root
        tables = [path for path in sorted(root.iterdir()) if _is_table(path)]
        files = [(p, SPLIT_ALIASES[p.stem.lower()]) for p in tables if p.stem.lower() in SPLIT_ALIASES]
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
        rows += _clip_rows(path, split)
    labels, clips = number_classes(rows)
    check_ids(clips, files[0][0])
    return Listing(labels, folder, hold_out_validation(clips), [path for path, _ in files])


def _clip_rows(path: Path, split: str) -> list[tuple[str, str, str]]:
    table = _read_table(path)
    names = [name.strip().lower() for name in table.column_names]
    for column in ("path", "label"):
        if names.count(column) != 1:
            has = "no column" if column not in names else "more than one column"
            raise UserError(f"{path}: has {has} '{column}'; expected the columns path, label and perhaps split")
    if not len(table):
        raise UserError(f"{path}: lists no clips; expected a row for each")
    columns = {n: _text_column(table.column(names.index(n)), path, n) for n in ("path", "label", "split") if n in names}
    labels = [text.strip() for text in columns["label"]]
    splits = [split or "train"] * len(table)
    if "split" in columns:
        for at, text in enumerate(columns["split"]):
            if text.strip().lower() not in SPLIT_ALIASES:
                raise UserError(f"{path}: row {at + 1} has the split '{text}'{suggest(text, list(SPLIT_ALIASES))}")
            splits[at] = SPLIT_ALIASES[text.strip().lower()]
    for at, text in enumerate(columns["path"]):
        if not text.strip() or "\0" in text:
            raise UserError(f"{path}: row {at + 1} has no path; every clip needs one")
    return list(zip(columns["path"], splits, labels, strict=True))


def _text_column(column: pa.ChunkedArray, path: Path, name: str) -> list[str]:
    if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
        raise UserError(f"{path}: column '{name}' holds {column.type}; expected text")
    return ["" if value is None else value for value in column.cast(pa.string()).to_pylist()]


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.ParquetFile(path).read()
        text = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in _column_names(path)}, strings_can_be_null=False
        )
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=_separator(path))
        return pyarrow.csv.read_csv(path, convert_options=text, parse_options=parse)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}; expected a table of clips") from None


def _column_names(path: Path) -> list[str]:
    parse = pyarrow.csv.ParseOptions(delimiter=_separator(path))
    with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
        return list(reader.schema.names)


def _separator(path: Path) -> str:
    """What separates columns: a comma, or what the first line has instead, a semicolon or a tab."""
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    return next((mark for mark in ",;\t" if mark.encode() in first), ",")


def _is_table(path: Path) -> bool:
    """Whether a file is a table of clips, and not one that `ssv2rt index` has written."""
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        return False
    try:
        if path.suffix.lower() == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            names = [] if METADATA_KEY in (schema.metadata or {}) else schema.names
        else:
            names = [] if path.name.endswith("quarantine.csv") else _column_names(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    return {"path", "label"} <= {name.strip().lower() for name in names}
