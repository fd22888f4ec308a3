"""What has been scored so far, on disk beside the output: a line of JSON for each video, written as it comes.

The first line says what scores depend on. A run that was stopped goes on behind the last whole line. Where windows slide over
videos, there is a line for each window, and the last one of a video says so.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssv2rt.core.errors import UserError
from ssv2rt.scoring.row import LAST, PATH, WINDOW, Row
from ssv2rt.scoring.sqlite_store import SeenNames

_FLUSH_EVERY = 2.0
"""Seconds: no more than this is lost when the power goes. A killed process loses nothing that was written."""


def journal_of(out: Path) -> Path:
    """Where the journal of an output is."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """Takes rows, and keeps them.

    Args:
        path: the file, new or to be gone on with.
        facts: what scores depend on.
        resume: whether there is a journal to go on with.
        windows: whether rows are those of windows.

    Raises:
        UserError: it was begun with other facts, is no journal, or another process writes it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, resume: bool, windows: bool = False) -> None:
        self.path = path
        self.seen = SeenNames()
        """Names of videos that are done."""
        self.videos = self.errors = 0
        """How many are done, and how many of them have an error."""
        self.rows = 0
        """How many lines they have."""
        self.windows = windows
        self._begun: dict[str, int] = {}
        """Windows of videos that are under way."""
        path.touch()
        self._file = path.open("r+b")
        self._lock()
        end = self._read(facts) if resume else 0
        self._file.truncate(end)
        self._file.seek(end)
        self._flushed = time.monotonic()
        if not end:
            self._file.write(_head(facts))
            self._file.flush()

    def write(self, rows: list[Row]) -> None:
        """Takes rows. They survive this process when this returns. Windows that are there already are let be."""
        for row in rows:
            if self.windows:
                done = self._begun.get(row[PATH], 0)
                row = {WINDOW: done, LAST: True, **row}  # an error that is not of the scorer's
                if row[WINDOW] < done:
                    continue
            self._line(row)
            self._count(row)
        self._file.flush()
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self.sync()

    def sync(self) -> None:
        """What was written survives a loss of power when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"another call writes '{self.path}' just now; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system that has no locks

    def _line(self, value: Mapping[str, Any]) -> None:
        # ASCII: names that are no text survive as lone surrogates.
        self._file.write(json.dumps(value, default=_packed).encode("ascii") + b"\n")

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.errors += row["status"] != "ok"
        if row.get(LAST, True):
            self.videos += 1
            self.seen.add(row[PATH])
            self._begun.pop(row[PATH], None)
        else:
            self._begun[row[PATH]] = row[WINDOW] + 1

    def _read(self, facts: Mapping[str, Any]) -> int:
        """Takes in what is there. Returns where the last whole line ends."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                value = _whole(line)
                if value is None:
                    break  # torn by a crash: it and all behind it are scored again
                if number == 0:
                    self._check(value, facts)
                else:
                    self._count(value)
                end += len(line)
        if not end and not _head(facts).startswith(self.path.read_bytes()[: len(_head(facts)) + 1]):
            raise UserError(f"'{self.path}' is no journal, or damaged at its beginning; remove it, and score anew")
        return end

    def _check(self, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if "ssv2rt" not in there:
            raise UserError(f"'{self.path}' is no journal of ssv2rt; move it, or choose another --out")
        for name, value in facts.items():
            if there.get(name) != json.loads(json.dumps(value)):
                raise UserError(
                    f"'{self.path}' was begun with another {name}: {_short(there.get(name))}, and it is {_short(value)} now; "
                    f"go on with what it was begun with, or add --overwrite to begin anew"
                )


def _head(facts: Mapping[str, Any]) -> bytes:
    """The first line."""
    return json.dumps({"ssv2rt": 1, **facts}).encode("ascii") + b"\n"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a journal, in the order in which they came."""
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            row = _whole(line)
            if row is None:
                return
            yield row


def _whole(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line, object_hook=_unpacked)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_FLOATS = "float32"


def _packed(value: object) -> dict[str, str]:
    """Many numbers in few bytes."""
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    return {_FLOATS: base64.b64encode(value.tobytes()).decode("ascii")}


def _unpacked(value: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(value[_FLOATS]), np.float32) if value.keys() == {_FLOATS} else value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
