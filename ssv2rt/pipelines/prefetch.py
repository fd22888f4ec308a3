"""Files read ahead of the decoder: many at once, because slow storage makes each one wait, and bounded by bytes."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition

from ssv2rt.video.container import BadVideo, VideoLocation
from ssv2rt.video.storage import ByteRange

LARGE = 64 << 20
"""Bytes; larger files are left to the decoder, which reads what it needs."""


class Prefetcher:
    """Reads files in the order in which they are asked for.

    Args:
        readers: files that are open at the same time.
        limit: bytes that may be held; a single file may be larger.
    """

    def __init__(self, *, readers: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._budget = _Budget(limit)
        self._asked = 0

    def ask(self, frame_positions: Sequence[VideoLocation]) -> list[Future[FileContent]]:
        """Starts reading. Each future gives the content, or raises OSError or BadVideo; `close` its content after use."""
        futures = [self._pool.submit(self._read, place, self._asked + at) for at, place in enumerate(frame_positions)]
        self._asked += len(frame_positions)
        return futures

    def stop(self) -> None:
        """Gives up what has not been read yet."""
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
    """Bytes of a file that is read at once; -1 of one that is large or no ordinary file."""
    if isinstance(place, ByteRange):
        size = place.length()
    else:
        status = place.stat()
        size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return size if size <= LARGE else -1


class FileContent:
    """A file that has been read, or, if it is large or no ordinary file, where it is."""

    def __init__(
        self, place: VideoLocation, data: bytes | None = None, close: Callable[[], None] = lambda: None
    ) -> None:
        self.source: VideoLocation | bytes = place if data is None else data
        self.close = close
        """Says that it is not used any more."""


class _Budget:
    """Bytes that are given out in turn, so that no one who comes later keeps an earlier one waiting."""

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
