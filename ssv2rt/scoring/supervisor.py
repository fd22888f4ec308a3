"""Workers, and what becomes of the videos when one of them crashes or hangs.

The batches of a worker that has died are tried again, one at a time and by PyAV; one that kills a worker again is halved,
until a video stands alone. That video has an error row, and all others are scored.
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
from ssv2rt.dataset.listing import as_text
from ssv2rt.scoring.row import LAST, Row, row_of
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import FLUSH, READY, TRUSTED, WorkerSettings, work

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


Task = tuple[int, Video]
Answer = list[tuple[int, Row]]
_STARTS = 3
"""Times that a worker may die before it has answered anything, in a row."""
_START = 600.0
"""Seconds that loading an engine may take; building its kernels can be slow."""


@dataclass
class _Worker:
    """One process, and what it has been sent."""

    settings: WorkerSettings
    process: Any = None
    connection: Connection | None = None
    ready: bool = False
    isolating: bool = False
    """Whether it has one batch, which is under suspicion."""
    flushed: bool = False
    """Whether it has been told that no more is to come for now."""
    size: int = 1
    """Videos in a batch of it."""
    batches_ahead: int = 1
    """Batches that it has at most; it may need as many before it answers the first."""
    sent: deque[list[Task]] = field(default_factory=deque)
    trusted: dict[str, Decision] = field(default_factory=dict)
    """What it has found out of DALI on its device."""
    heard: float = 0.0
    """When it last said something, or was last given something to do."""

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        known = {TRUSTED: self.trusted} if self.trusted else {}
        settings = replace(self.settings, options=self.settings.options | known)
        self.process = context.Process(target=work, args=(there, settings, logger.getEffectiveLevel()), daemon=True)
        self.process.start()
        there.close()
        self.connection, self.ready, self.isolating, self.flushed = here, False, False, False
        self.heard = time.monotonic()

    def send(self, message: Any) -> None:
        assert self.connection is not None
        if not self.sent:
            self.heard = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)  # if it has died, that is noticed when it is listened to
        if isinstance(message, list):
            self.sent.append(message)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()


class Supervisor:
    """Scores batches of videos by workers that it keeps alive.

    Args:
        workers: one of each is run.
        timeout: seconds after which a worker that has work and says nothing is ended.

    Use it as a context: leaving it ends the workers.
    """

    def __init__(self, workers: Sequence[WorkerSettings], *, timeout: float) -> None:
        self._workers = [_Worker(settings) for settings in workers]
        self._timeout = timeout
        self._suspects: deque[list[Task]] = deque()
        self._failed_starts = 0
        self.restarts = 0
        self.trusted: dict[str, Decision] = {}
        """Which kinds of videos workers trust DALI with. One that is started anew is told."""

    def __enter__(self) -> Supervisor:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]:
        """The rows of all videos, with their numbers, in batches or parts of them, as they come.

        What a worker had given of a video before it died comes again.

        Raises:
            UserError: a worker cannot load the engine, or dies again and again before it has done anything.
        """
        source: Iterator[Task] | None = videos
        while True:
            for worker in self._workers:
                if not worker.ready:
                    continue
                if self._suspects:
                    if not worker.sent:
                        worker.isolating, worker.flushed = True, True
                        worker.send(self._suspects.popleft())
                        worker.send(FLUSH)
                    elif not worker.flushed:
                        worker.send(FLUSH)
                        worker.flushed = True
                    continue
                if worker.isolating and worker.sent:
                    continue
                worker.isolating = False
                while source is not None and len(worker.sent) < worker.batches_ahead:
                    batch = _take(source, worker.size)
                    if not batch:
                        source = None
                        break
                    worker.flushed = False
                    worker.send(batch)
                if source is None and worker.sent and not worker.flushed:
                    worker.send(FLUSH)
                    worker.flushed = True
            if source is None and not self._suspects and not any(worker.sent for worker in self._workers):
                return
            for worker, message in self._listen():
                if message is None:
                    yield from self._died(worker, "decoder crashed")
                elif isinstance(message, UserError):
                    raise message
                elif isinstance(message, tuple) and message[0] == TRUSTED:
                    worker.trusted = message[1]
                    self.trusted |= message[1]
                elif isinstance(message, tuple):
                    assert message[0] == READY
                    worker.ready, worker.size, worker.batches_ahead = True, *message[1:]
                else:
                    self._failed_starts = 0
                    if message and message[-1][1].get(LAST, True):
                        worker.sent.popleft()
                    yield message
            for worker in self._workers:
                limit = self._timeout if worker.ready else _START
                if (worker.sent or not worker.ready) and time.monotonic() - worker.heard > limit:
                    yield from self._died(worker, "timeout")

    def _listen(self) -> Iterator[tuple[_Worker, Any]]:
        """What workers have to say; None of one that has died."""
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.sent or not worker.ready]
        until = min((worker.heard + (self._timeout if worker.ready else _START) for worker in busy), default=now)
        heard = wait([w.connection for w in self._workers if w.connection], max(0.0, min(1.0, until - now)) + 0.01)
        for worker in self._workers:
            if worker.connection is None or worker.connection not in heard:
                continue
            worker.heard = time.monotonic()
            try:
                yield worker, worker.connection.recv()
            except (EOFError, ConnectionResetError):
                yield worker, None

    def _died(self, worker: _Worker, reason: str) -> Iterator[Answer]:
        """Starts a worker anew, and puts what it was doing under suspicion."""
        suspects, isolating, was_ready = list(worker.sent), worker.isolating, worker.ready
        worker.sent.clear()
        worker.end()
        code = worker.process.exitcode
        if not was_ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
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
                    f"scoring '{as_text(video.name)}' ended its process ({reason}, exit code {code}); going on without it"
                )
                yield [(number, row_of(video.name, {"status": f"error: {reason}"}))]
                return
            middle = len(batch) // 2
            suspects = [batch[:middle], batch[middle:]]
        suspects = [[(number, replace(video, by_pyav=True)) for number, video in batch] for batch in suspects]
        self._suspects.extendleft(reversed(suspects))


def _take(source: Iterator[Task], count: int) -> list[Task]:
    batch: list[Task] = []
    for task in source:
        batch.append(task)
        if len(batch) == count:
            break
    return batch
