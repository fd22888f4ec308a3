"""Names that have come already, kept on disk, so that memory does not grow with them."""

from __future__ import annotations

import hashlib
import os
import sqlite3


class Seen:
    """A set of names that only grows."""

    def __init__(self) -> None:
        self._base = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # in a temporary file of its own
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("PRAGMA synchronous = OFF")
        self._base.execute("CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID")
        self._base.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Takes a name; tells whether it is new."""
        digest = hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
        return self._base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def __contains__(self, name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
        return self._base.execute("SELECT 1 FROM seen WHERE name = ?", (digest,)).fetchone() is not None
