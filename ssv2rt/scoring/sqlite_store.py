"""What grows with the number of videos, in temporary files on disk, so that memory does not."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SeenNames:
    """A set of names that only grows."""

    def __init__(self) -> None:
        self._base = _temporary("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, name: str) -> bool:
        """Takes a name; tells whether it is new. Raises OSError where the temporary folder is full."""
        with _full():
            return self._base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_digest(name),)).rowcount == 1

    def __contains__(self, name: str) -> bool:
        return self._base.execute("SELECT 1 FROM seen WHERE name = ?", (_digest(name),)).fetchone() is not None


class SortedRows:
    """Rows by the names of their videos, and by their number within a video."""

    def __init__(self) -> None:
        self._base = _temporary(
            "CREATE TABLE row (name BLOB, number INTEGER, good INTEGER, row BLOB, PRIMARY KEY (name, number)) WITHOUT ROWID"
        )

    def add(self, name: str, number: int, row: dict[str, Any], *, good: bool = True) -> bool:
        """Takes a row. Where there is one already, a good one replaces one that is not. Tells whether it is the first.

        Raises:
            OSError: the temporary folder is full.
        """
        key = (os.fsencode(name), number)
        with _full():
            old = self._base.execute("SELECT good FROM row WHERE name = ? AND number = ?", key).fetchone()
            if old is None or (good and not old[0]):
                self._base.execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?)", (*key, good, pickle.dumps(row)))
        return old is None

    def __contains__(self, name: str) -> bool:
        found = self._base.execute("SELECT 1 FROM row WHERE name = ? LIMIT 1", (os.fsencode(name),))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for (row,) in self._base.execute("SELECT row FROM row ORDER BY name, number"):
            yield pickle.loads(row)


def _temporary(table: str) -> sqlite3.Connection:
    base = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # SQLite puts it into TMPDIR
    base.execute("PRAGMA journal_mode = OFF")
    base.execute("PRAGMA synchronous = OFF")
    base.execute("PRAGMA cache_size = -256")  # KiB; the operating system keeps the file's pages where there is memory
    base.execute(table)
    base.execute("BEGIN")
    return base


def _digest(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


@contextmanager
def _full() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            errno.ENOSPC, f"no room for temporary files ({error}); set TMPDIR to a folder that has some"
        ) from None
