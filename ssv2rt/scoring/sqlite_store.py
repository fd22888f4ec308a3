"""A set of names and a sorter of rows that keep their data in temporary SQLite files, so that memory use stays constant."""

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
    """A set of names."""

    def __init__(self) -> None:
        self._database = _temporary_database("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, name: str) -> bool:
        """Adds a name. Returns whether it is new. Raises OSError if the temporary folder is full."""
        with _disk_full_errors():
            return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_digest(name),)).rowcount == 1

    def __contains__(self, name: str) -> bool:
        return self._database.execute("SELECT 1 FROM seen WHERE name = ?", (_digest(name),)).fetchone() is not None


class SortedRows:
    """Rows, iterated in the order of (video name, number within the video)."""

    def __init__(self) -> None:
        self._database = _temporary_database(
            "CREATE TABLE row (name BLOB, number INTEGER, good INTEGER, row BLOB, PRIMARY KEY (name, number)) WITHOUT ROWID"
        )

    def add(self, name: str, number: int, row: dict[str, Any], *, good: bool = True) -> bool:
        """Adds a row; if the key exists, it is replaced only if `good` and the old one is not. Returns whether the key is new.

        Raises:
            OSError: the temporary folder is full.
        """
        key = (os.fsencode(name), number)
        with _disk_full_errors():
            old = self._database.execute("SELECT good FROM row WHERE name = ? AND number = ?", key).fetchone()
            if old is None or (good and not old[0]):
                self._database.execute(
                    "INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?)", (*key, good, pickle.dumps(row))
                )
        return old is None

    def __contains__(self, name: str) -> bool:
        found = self._database.execute("SELECT 1 FROM row WHERE name = ? LIMIT 1", (os.fsencode(name),))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for (row,) in self._database.execute("SELECT row FROM row ORDER BY name, number"):
            yield pickle.loads(row)


def _temporary_database(table: str) -> sqlite3.Connection:
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": an unnamed file in TMPDIR
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA cache_size = -256")  # negative: KiB. The operating system caches the file anyway
    database.execute(table)
    database.execute("BEGIN")
    return database


def _digest(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


@contextmanager
def _disk_full_errors() -> Iterator[None]:
    """Turns SQLite's error into an OSError with advice."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            errno.ENOSPC, f"no room for temporary files ({error}); set TMPDIR to a folder that has some"
        ) from None
