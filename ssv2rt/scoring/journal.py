"""The journal (write-ahead log) of a scoring run: a JSON-lines file beside the output, with each row as soon as it is scored.

The first line records everything that scores depend on. An interrupted run resumes after the last complete line. When scoring
sliding windows there is one line per window, and the last window of a video is marked with `IS_LAST`.
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
from ssv2rt.scoring.row import IS_LAST, PATH, WINDOW, Row
from ssv2rt.scoring.sqlite_store import SeenNames

_SYNC_INTERVAL = 2.0
"""Seconds between calls of fsync. A power failure loses at most this much; a killed process loses nothing."""


def journal_path(out: Path) -> Path:
    """The path of an output's journal."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """Appends rows to the journal file, after replaying it if the run resumes.

    Args:
        path: the journal file. It is truncated unless `resume` is set.
        facts: everything that scores depend on.
        resume: keep the rows of an existing journal.
        windows: whether each row is a sliding window rather than a video.

    Raises:
        UserError: the file was started with other facts, is not a journal, or is being written by another process.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, resume: bool, windows: bool = False) -> None:
        self.path = path
        self.seen = SeenNames()
        """Names of the videos that are completely scored."""
        self.videos = self.errors = 0
        """Numbers of completely scored videos, and of rows with an error."""
        self.rows = 0
        """Number of lines, without the first."""
        self.windows = windows
        self._next_window: dict[str, int] = {}
        """By name of a partly scored video: the number of its next window."""
        path.touch()
        self._file = path.open("r+b")
        self._lock()
        end = self._replay(facts) if resume else 0
        self._file.truncate(end)
        self._file.seek(end)
        self._last_sync = time.monotonic()
        if not end:
            self._file.write(_header_line(facts))
            self._file.flush()

    def write(self, rows: list[Row]) -> None:
        """Appends rows. They survive a crash of this process once this returns. Windows already in the journal are skipped."""
        for row in rows:
            if self.windows:
                done = self._next_window.get(row[PATH], 0)
                row = {WINDOW: done, IS_LAST: True, **row}  # error rows of the supervisor have no window
                if row[WINDOW] < done:
                    continue
            self._write_line(row)
            self._count(row)
        self._file.flush()
        if time.monotonic() - self._last_sync > _SYNC_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Once this returns, all rows written so far survive a power failure."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last_sync = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another process is writing '{self.path}'; wait for it, or choose another --out") from None
        except OSError:
            pass  # the file system does not support locks

    def _write_line(self, value: Mapping[str, Any]) -> None:
        # ASCII, because file names that are not valid UTF-8 contain lone surrogates.
        self._file.write(json.dumps(value, default=_encode_vector).encode("ascii") + b"\n")

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.errors += row["status"] != "ok"
        if row.get(IS_LAST, True):
            self.videos += 1
            self.seen.add(row[PATH])
            self._next_window.pop(row[PATH], None)
        else:
            self._next_window[row[PATH]] = row[WINDOW] + 1

    def _replay(self, facts: Mapping[str, Any]) -> int:
        """Counts the rows in the file. Returns the byte offset after the last complete line."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                value = _parse_line(line)
                if value is None:
                    break  # cut off by a crash: the videos from here on are scored again
                if number == 0:
                    self._check_facts(value, facts)
                else:
                    self._count(value)
                end += len(line)
        if not end and not _header_line(facts).startswith(self.path.read_bytes()[: len(_header_line(facts)) + 1]):
            raise UserError(f"'{self.path}' is not a journal, or its first line is damaged; remove it, and start again")
        return end

    def _check_facts(self, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if "ssv2rt" not in there:
            raise UserError(f"'{self.path}' is not a journal of ssv2rt; move it, or choose another --out")
        for name, value in facts.items():
            if there.get(name) != json.loads(json.dumps(value)):
                raise UserError(
                    f"'{self.path}' was started with another {name}: {_shortened(there.get(name))}, "
                    f"and now it is {_shortened(value)}; use the same as before, or add --overwrite to start again"
                )


def _header_line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps({"ssv2rt": 1, **facts}).encode("ascii") + b"\n"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a journal, in the order in which they were written."""
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            row = _parse_line(line)
            if row is None:
                return
            yield row


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if the line is incomplete or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line, object_hook=_decode_vector)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_FLOAT32_KEY = "float32"


def _encode_vector(value: object) -> dict[str, str]:
    """Encodes a float32 vector compactly, for `json.dumps`."""
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    return {_FLOAT32_KEY: base64.b64encode(value.tobytes()).decode("ascii")}


def _decode_vector(value: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(value[_FLOAT32_KEY]), np.float32) if value.keys() == {_FLOAT32_KEY} else value


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
