"""Rows as Parquet files of a fixed number each, beside the output, written while a run goes on.

A part is made of the journal's rows at its place, so one that is written again is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ssv2rt.core.errors import UsageError
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.writers import open_writer

SIZE = 10_000
"""Rows in a part; the last one has what is left."""
_AT_ONCE = 1000
"""Rows in memory."""


def parts_of(out: Path) -> Path:
    """The folder with the parts of an output."""
    return out.with_name(f"{out.name}.parts")


def check_parts(out: Path, *, overwrite: bool) -> None:
    """Before any work is done.

    Raises:
        UsageError: there are parts of an earlier run, and they may not be replaced.
    """
    folder = parts_of(out)
    if not overwrite and any(folder.glob("part-*.parquet")):
        raise UsageError(f"'{folder}' has parts of an earlier run; choose another --out, or add --overwrite")


class ParquetParts:
    """Follows a journal.

    Args:
        out: the output.
        columns: of the parts.
        journal: where rows are. If it has none yet, parts that are there are removed; otherwise they are written again.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, out: Path, columns: Sequence[str], journal: Journal) -> None:
        self._folder, self._columns, self._journal = parts_of(out), list(columns), journal
        self._folder.mkdir(exist_ok=True)
        if not journal.rows:
            for file in self._folder.glob("part-*.parquet"):
                file.unlink()
        self._rows = read_rows(journal.path)
        self._taken, self._last = 0, ""

    def follow(self) -> None:
        """Writes the parts that have become full."""
        while self._journal.rows - self._taken >= SIZE:
            self._write(SIZE)

    def end(self) -> None:
        """Writes the last one."""
        self.follow()
        if self._journal.rows > self._taken or not self._taken:
            self._write(self._journal.rows - self._taken)
        for file in self._folder.glob("part-*.parquet"):
            if file.name > self._last:
                file.unlink()  # of another run

    def _write(self, count: int) -> None:
        self._last = f"part-{self._taken // SIZE:05}.parquet"
        self._taken += count
        self._journal.sync()  # a part never has what the journal may lose when the power goes
        rows = islice(self._rows, count)
        with open_writer(self._folder / self._last, self._columns) as writer:
            while some := list(islice(rows, _AT_ONCE)):
                writer.write(some)
