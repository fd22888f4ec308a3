"""The ids of the clips that a decoder is working on, on disk, to know them after a crash.

An exception inside NVIDIA's parser aborts the process and cannot be caught.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path


class InFlight:
    """The batches that are in flight.

    Args:
        path: a file that is written at each change; None to write nothing. It is there while the process lives, and holds
            nothing when all batches are done. A killed process loses nothing of it; a machine without power may.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._batches: deque[Sequence[str]] = deque()
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644) if path else None

    def add(self, names: Sequence[str]) -> None:
        """A batch is begun next."""
        self._batches.append(names)
        self._write()

    def done(self) -> None:
        """The oldest batch is done."""
        if self._batches:
            self._batches.popleft()

    def clear(self) -> None:
        """No batch is under way any more."""
        self._batches.clear()

    def close(self) -> None:
        """Writes no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        if self._file is not None:
            data = json.dumps([name for batch in self._batches for name in batch]).encode()
            os.pwrite(self._file, data, 0)
            os.truncate(self._file, len(data))


def read_in_flight(path: Path) -> list[str]:
    """The ids that a process has left; an empty list if there is no such file, or it is damaged."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
