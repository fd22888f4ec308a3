"""Reads files ahead of the decoder: many at once, because slow storage has a long latency, and a bounded number of bytes."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Condition

from ssv2rt.video.container import BadVideo
from ssv2rt.video.storage import ByteRange, VideoLocation

LARGE = 64 << 20
"""Bytes. Larger files are not read ahead: the decoder opens them and reads what it needs."""


class Prefetcher:
    """Reads files in the order of the calls.

    Args:
        readers: files that are open at the same time.
        limit: bytes that may be in memory; a single file may be larger.
    """

    def __init__(self, *, readers: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._budget = _Budget(limit)
        self._asked = 0

    def ask(self, locations: Sequence[VideoLocation]) -> list[Future[FileContent]]:
        """Starts reading. Futures return the contents, to be closed after use, or raise OSError or BadVideo."""
        futures = [self._pool.submit(self._read, place, self._asked + at) for at, place in enumerate(locations)]
        self._asked += len(locations)
        return futures

    def stop(self) -> None:
        """Cancels what has not been read yet."""
        self._budget.end()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, place: VideoLocation, turn: int) -> FileContent:
        size = -1
        try:
            size = _small(place)
        finally:
            self._budget.take(turn, max(size, 0))
        if size < 0:
            return FileContent(place)
        try:
            data = place.read_bytes()
            if isinstance(place, ByteRange) and len(data) < size:
                raise BadVideo("truncated")
            return FileContent(place, data, lambda: self._budget.give(size))
        except BaseException:
            self._budget.give(size)
            raise


def _small(place: VideoLocation) -> int:
    """Size in bytes of a file to be read at once; -1 if it is large or no regular file."""
    if isinstance(place, Path):
        status = place.stat()
        size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    else:
        size = place.length()
    return size if size <= LARGE else -1


class FileContent:
    """The bytes of a file or, if it is large or no regular file, its location."""

    def __init__(
        self, place: VideoLocation, data: bytes | None = None, close: Callable[[], None] = lambda: None
    ) -> None:
        self.source: VideoLocation | bytes = place if data is None else data
        self.close = close
        """Releases its bytes."""


class _Budget:
    """A number of bytes that readers take in their order, so that no later file delays an earlier one."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._turn, self._ended = limit, 0, 0, False
        self._changed = Condition()

    def take(self, turn: int, amount: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or (self._turn == turn and self._fits(amount)))
            self._turn += 1
            self._used += amount
            self._changed.notify_all()

    def give(self, amount: int) -> None:
        with self._changed:
            self._used -= amount
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _fits(self, amount: int) -> bool:
        return not amount or not self._used or self._used + amount <= self._limit
