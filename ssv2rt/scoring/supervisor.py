"""Supervises worker processes, and isolates videos that make a worker crash or hang.

When a worker dies, the batches that it had in flight become suspects. They are retried one at a time, decoded by PyAV. A
suspect batch that kills a worker again is bisected, until a single video is left. That video gets an error row, and all others
are scored.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.row import IS_LAST, Row, named_row
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import FLUSH, READY, TRUSTED, WorkerSettings, work

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


Task = tuple[int, Video]
Answer = list[tuple[int, Row]]
_PROCESSES = multiprocessing.get_context("spawn")
"""How worker processes are started. Spawned, since forking a process with threads may deadlock."""
_MAX_FAILED_STARTS = 3
"""Consecutive times that workers may die while starting."""
_START_TIMEOUT = 600.0
"""Seconds that a worker may take to load its engine; compiling kernels can be slow."""


@dataclass
class _Worker:
    """A worker process and the batches it has in flight."""

    settings: WorkerSettings
    process: Any = None
    connection: Connection | None = None
    ready: bool = False
    isolating: bool = False
    """Whether it is running a single suspect batch."""
    flush_sent: bool = False
    """Whether `FLUSH` was sent after the last batch."""
    batch_size: int = 1
    """Videos in one of its batches."""
    batches_ahead: int = 1
    """Most batches in flight. It may need as many before it answers the first."""
    sent: deque[list[Task]] = field(default_factory=deque)
    trusted: dict[str, Decision] = field(default_factory=dict)
    """Its latest decisions on which kinds of videos DALI may decode on its device."""
    last_activity: float = 0.0
    """Time of its last message, or of the batch that ended its idleness."""

    def start(self) -> None:
        here, there = _PROCESSES.Pipe()
        known = {TRUSTED: self.trusted} if self.trusted else {}
        settings = replace(self.settings, options=self.settings.options | known)
        self.process = _PROCESSES.Process(target=work, args=(there, settings, logger.getEffectiveLevel()), daemon=True)
        self.process.start()
        there.close()
        self.connection, self.ready, self.isolating, self.flush_sent = here, False, False, False
        self.last_activity = time.monotonic()

    def send(self, message: Any) -> None:
        assert self.connection is not None
        if not self.sent:
            self.last_activity = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)  # `_receive` notices that it has died
        if isinstance(message, list):
            self.sent.append(message)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()


class Supervisor:
    """Scores videos with worker processes, and restarts those that die. A context manager: leaving it kills the workers.

    Args:
        workers: settings of each worker.
        timeout: seconds without a message after which a worker with batches in flight is restarted.
    """

    def __init__(self, workers: Sequence[WorkerSettings], *, timeout: float) -> None:
        self._workers = [_Worker(settings) for settings in workers]
        self._timeout = timeout
        self._suspects: deque[list[Task]] = deque()
        self._failed_starts = 0
        self.restarts = 0
        self.trusted: dict[str, Decision] = {}
        """Which kinds of videos the workers trust DALI with. A restarted worker gets its own decisions back."""

    def __enter__(self) -> Supervisor:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]:
        """Yields lists of (video number, row) for all videos, in the order in which they are done.

        Windows of a video whose worker died may be yielded twice.

        Raises:
            UserError: a worker cannot load the engine, or repeatedly dies while starting.
        """
        source: Iterator[Task] | None = videos
        while True:
            for worker in self._workers:
                if not worker.ready:
                    continue
                if self._suspects:
                    if not worker.sent:
                        worker.isolating, worker.flush_sent = True, True
                        worker.send(self._suspects.popleft())
                        worker.send(FLUSH)
                    elif not worker.flush_sent:
                        worker.send(FLUSH)
                        worker.flush_sent = True
                    continue
                if worker.isolating and worker.sent:
                    continue
                worker.isolating = False
                while source is not None and len(worker.sent) < worker.batches_ahead:
                    batch = _next_batch(source, worker.batch_size)
                    if not batch:
                        source = None
                        break
                    worker.flush_sent = False
                    worker.send(batch)
                if source is None and worker.sent and not worker.flush_sent:
                    worker.send(FLUSH)
                    worker.flush_sent = True
            if source is None and not self._suspects and not any(worker.sent for worker in self._workers):
                return
            for worker, message in self._receive():
                if message is None:
                    yield from self._restart(worker, "decoder crashed")
                elif isinstance(message, UserError):
                    raise message
                elif isinstance(message, tuple) and message[0] == TRUSTED:
                    worker.trusted = message[1]
                    self.trusted |= message[1]
                elif isinstance(message, tuple):
                    assert message[0] == READY
                    worker.ready, worker.batch_size, worker.batches_ahead = True, *message[1:]
                else:
                    self._failed_starts = 0
                    if message and message[-1][1].get(IS_LAST, True):
                        worker.sent.popleft()
                    yield message
            for worker in self._workers:
                limit = self._timeout if worker.ready else _START_TIMEOUT
                if (worker.sent or not worker.ready) and time.monotonic() - worker.last_activity > limit:
                    yield from self._restart(worker, "timeout")

    def _receive(self) -> Iterator[tuple[_Worker, Any]]:
        """Waits up to a second for messages of workers. The message is None if the worker has died."""
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.sent or not worker.ready]
        until = min(
            (worker.last_activity + (self._timeout if worker.ready else _START_TIMEOUT) for worker in busy), default=now
        )
        readable = wait([w.connection for w in self._workers if w.connection], max(0.0, min(1.0, until - now)) + 0.01)
        for worker in self._workers:
            if worker.connection is None or worker.connection not in readable:
                continue
            worker.last_activity = time.monotonic()
            try:
                yield worker, worker.connection.recv()
            except (EOFError, ConnectionResetError):
                yield worker, None

    def _restart(self, worker: _Worker, reason: str) -> Iterator[Answer]:
        """Restarts a worker that died or hangs. Its batches become suspects, or a single suspect video gets its error row."""
        suspects, isolating, was_ready = list(worker.sent), worker.isolating, worker.ready
        worker.sent.clear()
        worker.kill()
        code = worker.process.exitcode
        if not was_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise UserError(
                    f"the process that runs the engine ends before it has begun (exit code {code}); "
                    f"see whether `ssv2rt doctor` finds what is wrong, or rebuild the engine"
                )
        self.restarts += 1
        worker.start()
        if isolating and len(suspects) == 1:
            (batch,) = suspects
            if len(batch) == 1:
                ((number, video),) = batch
                logger.warning(
                    f"scoring '{escape_non_utf8(video.name)}' ended its process ({reason}, exit code {code}); "
                    f"going on without it"
                )
                yield [(number, named_row(video.name, {"status": f"error: {reason}"}))]
                return
            middle = len(batch) // 2
            suspects = [batch[:middle], batch[middle:]]
        suspects = [[(number, replace(video, by_pyav=True)) for number, video in batch] for batch in suspects]
        self._suspects.extendleft(reversed(suspects))


def _next_batch(source: Iterator[Task], count: int) -> list[Task]:
    batch: list[Task] = []
    for task in source:
        batch.append(task)
        if len(batch) == count:
            break
    return batch
