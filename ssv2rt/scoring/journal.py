"""The journal (write-ahead log) of a scoring run: a JSON-lines file beside the output, with each row as soon as it is scored.

The first line records everything that scores depend on. An interrupted run resumes after the last complete line. When scoring
sliding windows there is one line per window, and the last window of a video is marked with `IS_LAST`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.row import IS_LAST, PATH, PREDICTED, SECONDS, VECTOR, WINDOW, Row, column_type
from ssv2rt.scoring.sqlite_store import SeenNames
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)

_FORMAT = 1
_LONGEST_LINE = 1 << 24
"""Bytes. The vectors of a row take some 10 kB each."""
_LARGEST_INT, _LARGEST_FLOAT = 2**31, 1e30
"""Bounds of what an output's columns hold."""
_SYNC_INTERVAL = 2.0
"""Seconds between calls of fsync. A power failure loses at most this much; a killed process loses nothing."""


def journal_path(out: Path) -> Path:
    """The path of an output's journal."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """Appends rows to the journal file, after replaying it if the run resumes.

    Until it is closed or removed, no other process can open it.

    Args:
        path: the journal file.
        facts: everything that scores depend on.
        resume: keep the rows of an existing journal.
        overwrite: discard the rows of an existing journal.
        windows: whether each row is a sliding window rather than a video.

    Raises:
        UsageError: there is a journal, and neither `resume` nor `overwrite` is set.
        UserError: the file was started with other facts, is not a journal, or is being written by another process.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        windows: bool = False,
    ) -> None:
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
        self._file = self._open_locked()
        try:
            if os.fstat(self._file.fileno()).st_size and not resume and not overwrite:
                raise UsageError(
                    f"an earlier run has left '{path}'; add --resume to go on with it, or --overwrite to begin anew"
                )
            end = self._replay(facts) if resume else 0
            self._file.truncate(end)
            self._file.seek(end)
        except BaseException:
            self._file.close()
            raise
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

    def remove(self) -> None:
        """Deletes the file. Another process can have a journal at its path only after that."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        """Closes the file, unless that was done."""
        with contextlib.suppress(OSError):  # of a row for which there was no room, as `write` has said
            self._file.close()

    def _open_locked(self) -> IO[bytes]:
        while True:
            file = open(self.path, "r+b", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666))  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(
                    f"another process is writing '{self.path}'; wait for it, or choose another --out"
                ) from None
            except OSError:
                return file  # the file system does not support locks
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.path.stat(), os.fstat(file.fileno())):
                    return file
            file.close()  # another process has removed it since it was opened

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
        """Counts the rows in the file, and blanks those that are none. Returns the byte offset after the last whole line."""
        line = self._file.readline(_LONGEST_LINE)
        header = _parse_line(line, decode=False)
        if header is None:
            if not _header_line(facts).startswith(line):
                raise UserError(
                    f"'{self.path}' is not a journal, or its first line is damaged; remove it, and start again"
                )
            return 0
        self._check_facts(header, facts)
        end, ignored = len(line), 0
        while (line := self._file.readline(_LONGEST_LINE)).endswith(b"\n"):
            row = _parse_line(line)
            if row is not None and self._fits(row):
                self._count(row)
            elif line.strip():
                ignored += 1
                self._file.seek(end)
                self._file.write(b" " * (len(line) - 1) + b"\n")
                self._file.seek(end + len(line))
            end += len(line)
        if len(line) == _LONGEST_LINE:  # otherwise a crash has cut it off
            ignored += 1
        if ignored:
            logger.warning(f"'{self.path}' has {ignored} damaged lines; the videos that they told of are scored again")
        return end

    def _fits(self, row: Row) -> bool:
        """Whether a row that was read is one that this run could have written, after the rows before it."""
        path, status = row.get(PATH), row.get("status")
        if not isinstance(path, str) or not isinstance(status, str):
            return False
        if status != OK and not status.startswith("error: "):
            return False
        try:
            if row.get("video") != escape_non_utf8(path) or path in self.seen:
                return False
        except ValueError:  # a name that no file can have
            return False
        if (row.keys() & {WINDOW, IS_LAST}) != ({WINDOW, IS_LAST} if self.windows else set()):
            return False
        if self.windows and (type(row[WINDOW]) is not int or type(row[IS_LAST]) is not bool):
            return False
        if self.windows and row[WINDOW] != self._next_window.get(path, 0):
            return False
        columns = [(name, value) for name, value in row.items() if name not in (PATH, WINDOW, IS_LAST)]
        if not all(_fits_column(name, value) for name, value in columns):
            return False
        required = (*PREDICTED, *(SECONDS if self.windows else ()))
        return status != OK or all(row.get(name, "") != "" for name in required)

    def _check_facts(self, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if there.get("ssv2rt") != _FORMAT:
            raise UserError(f"'{self.path}' is not a journal of this ssv2rt; move it, or choose another --out")
        for name, value in facts.items():
            if there.get(name) != json.loads(json.dumps(value)):
                raise UserError(
                    f"'{self.path}' was started with {name} = {_shortened(there.get(name))}, "
                    f"and now it is {_shortened(value)}; use the same as before, or add --overwrite to start again"
                )


def _header_line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps({"ssv2rt": _FORMAT, **facts}).encode("ascii") + b"\n"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a journal, in the order in which they were written."""
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            if line.strip() and (row := _parse_line(line)):
                yield row


def _parse_line(line: bytes, *, decode: bool = True) -> dict[str, Any] | None:
    """The JSON object of a line, with vectors decoded; None if the line is incomplete or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line, object_hook=_decode_vector if decode else None)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fits_column(name: str, value: object) -> bool:
    """Whether a value can be written to a column."""
    kind = column_type(name)
    if kind is str:
        return isinstance(value, str) and value.encode(errors="replace") == value.encode(errors="surrogatepass")
    if kind is VECTOR:
        return isinstance(value, np.ndarray)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    if kind is float and isinstance(value, int):
        return abs(value) <= 1 << 24  # PyArrow takes no larger whole number for a float32
    return abs(value) < _LARGEST_INT if kind is int else abs(value) < _LARGEST_FLOAT


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
