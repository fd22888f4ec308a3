"""Reads data sets given as CSV or Parquet tables with the columns path, label and optionally split.

The columns of a CSV file may be separated by commas, semicolons or tabs. Its text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.dataset.listing import (
    METADATA_KEY,
    SPLIT_ALIASES,
    Listing,
    hold_out_validation,
    number_classes,
    path_to_text,
)
from ssv2rt.video.storage import is_address

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_SEPARATORS = (",", ";", "\t")
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_LONGEST_HEADER = 1 << 16
"""Characters."""
_EXPECTED = "expected a table of clips, whose first line is path,label or path,label,split"


class _Row(NamedTuple):
    """A row of a table."""

    place: str
    """Where the row is, such as 'line 3'."""
    values: list[str]
    """A value for each column."""


def read_tables(root: Path) -> Listing | None:
    """The clips of a table, or of the tables in a folder; None if the folder has no table of clips.

    Paths are relative to the table's folder, or absolute. Rows that are the same are read once.

    Raises:
        UserError: a table cannot be read, lacks a column, names an unknown split, or lists a clip twice in different ways.
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
    clips: dict[str, tuple[str, str]] = {}  # path: split and label
    places: dict[str, str] = {}
    for file, split in files:
        repeated, name = 0, file.name
        for place, path, *facts in _clip_rows(file, split):
            if path in clips and clips[path] != tuple(facts):
                raise UserError(
                    f"{file}: clip '{path}' is listed twice, in {places[path]} and in {place}, with another label or split; "
                    f"every clip may appear once"
                )
            repeated += path in clips
            clips[path], places[path] = (facts[0], facts[1]), f"{place} of {name}"
        if repeated:
            logger.warning(f"{file}: {repeated} rows repeat others; each clip is used once")
    labels, listed = number_classes([(path, split, label) for path, (split, label) in clips.items()])
    return Listing(labels, folder, hold_out_validation(listed), [path for path, _ in files])


def _clip_rows(path: Path, split: str) -> Iterator[tuple[str, str, str, str]]:
    """Place, path, split and label of each row."""
    header, rows = _read_table(path)
    names = [name.strip().lower() for name in header]
    for column in ("path", "label"):
        if names.count(column) != 1:
            has = "no column" if column not in names else "more than one column"
            raise UserError(f"{path}: has {has} '{column}'; expected the columns path, label and perhaps split")
    if names.count("split") > 1:
        raise UserError(f"{path}: has more than one column 'split'; expected the columns path, label and perhaps split")
    if not rows:
        raise UserError(f"{path}: lists no clips; expected a row for each")
    at = {name: names.index(name) for name in ("path", "label", "split") if name in names}
    escaped: set[str] = set()
    backslashes = 0
    for place, values in rows:
        part = split or "train"
        if "split" in at:
            word = values[at["split"]].strip()
            if word.lower() not in SPLIT_ALIASES:
                raise UserError(f"{path}: {place} has the split '{word}'{suggest(word, list(SPLIT_ALIASES))}")
            part = SPLIT_ALIASES[word.lower()]
        name = values[at["path"]]
        if not name.strip() or "\0" in name:
            raise UserError(f"{path}: {place} has no path; every clip needs one")
        here = _local_path(name, path, place)
        backslashes += "\\" in name and "\\" not in here
        raw = values[at["label"]].strip()
        label = path_to_text(raw)
        if label != raw and label not in escaped:
            logger.warning(f"{path}: the label in {place} is not UTF-8; it is called '{label}'")
            escaped.add(label)
        yield place, here, part, label
    if backslashes:
        logger.info(f"{path}: {backslashes} paths have backslashes, which are read as /")


def _local_path(name: str, table: Path, place: str) -> str:
    """A path with / where the table has backslashes, or without spaces around it, unless a file has that very name."""
    if ("\\" not in name and ":" not in name and name == name.strip()) or os.path.lexists(table.parent / name):
        return name
    if os.path.lexists(table.parent / name.strip()):
        return name.strip()
    if is_address(name.strip()):
        raise UserError(
            f"{table}: {place} has '{name}', an address; copy the videos to this machine, and give their paths"
        )
    if _WINDOWS_ROOT.match(name):
        raise UserError(
            f"{table}: {place} has '{name}', a path of another machine; expected paths relative to '{table.parent}', or "
            f"absolute ones of this machine"
        )
    return name if "/" in name else name.replace("\\", "/")


def _read_table(path: Path) -> tuple[list[str], list[_Row]]:
    """The names of the columns, and the rows.

    Raises:
        UserError: the table cannot be read.
    """
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}; {_EXPECTED}") from None


def _read_parquet(path: Path) -> tuple[list[str], list[_Row]]:
    with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
        table = parquet.read()
    names = [name for name in table.column_names if name.strip().lower() in ("path", "label", "split")]
    columns: list[list[str]] = []
    for number, name in enumerate(table.column_names):
        if name not in names:
            continue
        column = table.column(number)
        if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
            raise UserError(f"{path}: column '{name}' holds {column.type}; expected text")
        columns.append(["" if value is None else value for value in column.cast(pa.string()).to_pylist()])
    rows = zip(*columns, strict=True)
    return names, [_Row(f"row {number}", list(values)) for number, values in enumerate(rows, 1)]


def _read_csv(path: Path) -> tuple[list[str], list[_Row]]:
    """Rows without text are left out, and so are empty values at the end of a row that is longer than the first."""
    rows = []
    with _open_csv(path) as file:
        above, first = _first_line(file)
        separator = _separator(first)
        reader = csv.reader(itertools.chain([first], file), delimiter=separator, strict=True)
        line = above + 1
        try:
            header = next(reader)
            line = above + reader.line_num + 1
            for values in reader:
                while len(values) > len(header) and not values[-1].strip():
                    values.pop()
                if any(value.strip() for value in values):
                    if len(values) != len(header):
                        raise UserError(
                            f"{path}: line {line} has {len(values)} values for {len(header)} columns; expected "
                            f"{separator.join(header)!r}, with quotes around a value that has {separator!r} in it"
                        )
                    rows.append(_Row(f"line {line}", values))
                line = above + reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}: line {line} is not a row of a table ({error}); {_EXPECTED}") from None
    return header, rows


def _open_csv(path: Path) -> TextIO:
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if wide:
        return path.open(encoding="utf-16", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _first_line(file: TextIO) -> tuple[int, str]:
    """The first line with text, and how many lines are above it.

    Raises:
        ValueError: there is none, or it is too long for names of columns.
    """
    above = 0
    while (line := file.readline(_LONGEST_HEADER)) and not line.strip():
        above += 1
    if not line or len(line) == _LONGEST_HEADER:
        raise ValueError("it has no line with names of columns")
    return above, line


def _separator(first: str) -> str:
    """What separates columns: that which makes `first` name the columns path and label, or else a comma."""
    return next((mark for mark in _SEPARATORS if {"path", "label"} <= _names(first, mark)), _SEPARATORS[0])


def _names(first: str, separator: str) -> set[str]:
    return {name.strip().lower() for name in next(csv.reader([first], delimiter=separator), [])}


def _is_table(path: Path) -> bool:
    """Whether a file is a table of clips, and not one that `ssv2rt index` has written."""
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file() or path.name.endswith("quarantine.csv"):
        return False
    try:
        if path.suffix.lower() == ".parquet":
            with path.open("rb") as parquet:
                schema = pyarrow.parquet.read_schema(parquet)
            names = (
                set() if METADATA_KEY in (schema.metadata or {}) else {name.strip().lower() for name in schema.names}
            )
        else:
            with _open_csv(path) as file:
                first = _first_line(file)[1]
            names = _names(first, _separator(first))
    except (OSError, pa.ArrowException, ValueError, csv.Error):
        return False
    return {"path", "label"} <= names
