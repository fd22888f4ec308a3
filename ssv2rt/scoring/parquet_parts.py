"""Parquet parts: files with a fixed number of rows each, written beside the output while the run is in progress.

Part n always holds the journal's rows from n * ROWS_PER_PART on, so a part that is rewritten has the same content.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ssv2rt.core.errors import UsageError
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.metadata import Metadata
from ssv2rt.scoring.writers import open_writer

ROWS_PER_PART = 10_000
"""The last part has fewer."""
_ROWS_IN_MEMORY = 1000


def parts_folder(out: Path) -> Path:
    """The folder for the parts of an output."""
    return out.with_name(f"{out.name}.parts")


def check_parts(out: Path, *, overwrite: bool) -> None:
    """Checks, before any work is done, that the parts can be written.

    Raises:
        UsageError: there are parts of an earlier run, and `overwrite` is not set.
    """
    folder = parts_folder(out)
    if not overwrite and any(folder.glob("part-*.parquet")):
        raise UsageError(f"'{folder}' has parts of an earlier run; choose another --out, or add --overwrite")


class ParquetParts:
    """Writes the rows of a journal to parts as the journal grows.

    Args:
        out: the path of the output.
        columns: columns of the parts.
        journal: source of the rows. Existing parts are deleted if it is empty, and rewritten otherwise.
        metadata: of the parts; see `ssv2rt.scoring.metadata`.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, out: Path, columns: Sequence[str], journal: Journal, metadata: Metadata | None = None) -> None:
        self._folder, self._columns, self._journal = parts_folder(out), list(columns), journal
        self._metadata = metadata
        self._folder.mkdir(exist_ok=True)
        for file in self._folder.glob(".part-*.parquet.*.partial"):
            file.unlink()  # of a call that was killed
        if not journal.rows:
            for file in self._folder.glob("part-*.parquet"):
                file.unlink()
        self._rows = read_rows(journal.path)
        self._written, self._last_name = 0, ""

    def follow(self) -> None:
        """Writes all parts for which the journal has enough rows."""
        while self._journal.rows - self._written >= ROWS_PER_PART:
            self._write(ROWS_PER_PART)

    def end(self) -> None:
        """Writes the last part, which may be shorter, and deletes later ones."""
        self.follow()
        if self._journal.rows > self._written or not self._written:
            self._write(self._journal.rows - self._written)
        for file in self._folder.glob("part-*.parquet"):
            if file.name > self._last_name:
                file.unlink()  # left by another run

    def _write(self, count: int) -> None:
        self._last_name = f"part-{self._written // ROWS_PER_PART:05}.parquet"
        self._written += count
        self._journal.sync()  # a power failure must not lose journal rows that a part already has
        rows = islice(self._rows, count)
        with open_writer(self._folder / self._last_name, self._columns, self._metadata) as writer:
            while batch := list(islice(rows, _ROWS_IN_MEMORY)):
                writer.write(batch)
