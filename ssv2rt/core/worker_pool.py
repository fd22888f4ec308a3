"""Runs tasks in worker processes, and isolates tasks that make their process crash or hang.

When a process dies, the tasks that it had in flight become suspects. They are retried a batch at a time. A batch that ends a
process again is bisected, until a single task is left. That task fails, and all others are done.

Protocol, over a pipe. After starting, the process sends (READY, tasks in a batch, batches ahead) or a `UserError`. The pool
sends batches, several of which may be in flight. The process answers with parts of their results; an empty one is a heartbeat.
`FLUSH` asks it to finish all batches in flight without waiting for more. It sends (LEARNED, options) when it has learned
something that a successor should know.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from ssv2rt.core.child_processes import follow_parent
from ssv2rt.core.errors import MORE_MEMORY, UserError, says_out_of_memory
from ssv2rt.core.log import log_to_stderr

logger = logging.getLogger(__name__)

_PROCESSES = multiprocessing.get_context("spawn")
"""How worker processes are started. Spawned, since forking a process with threads may deadlock."""

T = TypeVar("T")
R = TypeVar("R")
FLUSH, READY, LEARNED = "flush", "ready", "learned"
_MAX_FAILED_STARTS = 3
"""Consecutive times that processes may die while starting."""
_START_TIMEOUT = 600.0
"""Seconds that a process may take to start; compiling an engine's kernels can be slow."""
_POLL_INTERVAL = 0.2
"""Seconds between looks at the time, if no message comes."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a process makes its `Worker`."""

    factory: str
    """module:function that is called with `options`, and returns a `Worker`."""
    options: dict[str, Any]


@dataclass
class Worker(Generic[T, R]):
    """What a process does with its tasks."""

    run: Callable[[Iterable[list[tuple[int, T]]]], Iterable[list[tuple[int, R]]]]
    """Yields (number, result) in parts for batches of (number, task). An empty part tells that the work goes on."""
    batch_size: int
    """Tasks in a batch."""
    batches_ahead: int
    """Most batches in flight. It may need as many before it answers the first."""
    learned: Callable[[], dict[str, Any]] = dict
    """Options for its successor, if it dies, beside those of its own settings."""


@dataclass
class _Process(Generic[T]):
    """A worker process and the tasks it has in flight."""

    settings: WorkerSettings
    process: Any = None
    connection: Connection | None = None
    ready: bool = False
    isolating: bool = False
    """Whether it is running a single suspect batch."""
    flush_sent: bool = False
    """Whether `FLUSH` was sent after the last batch."""
    batch_size: int = 1
    batches_ahead: int = 1
    sent: deque[dict[int, T]] = field(default_factory=deque)
    """The unfinished tasks of each batch, by number."""
    results: Counter[int] = field(default_factory=Counter)
    """How many results each unfinished task has given."""
    last_activity: float = 0.0
    """Time of its last message, or of the batch that ended its idleness."""

    def start(self) -> None:
        here, there = _PROCESSES.Pipe()
        arguments = (there, self.settings, logging.getLogger("ssv2rt").getEffectiveLevel())
        self.process = _PROCESSES.Process(target=_work, args=arguments, daemon=True)
        with _main_module_hidden():
            self.process.start()
        there.close()
        self.connection, self.ready, self.isolating, self.flush_sent = here, False, False, False
        self.sent, self.results = deque(), Counter()
        self.last_activity = time.monotonic()

    def send(self, message: Any) -> None:
        assert self.connection is not None
        if not self.sent:
            self.last_activity = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)  # `_receive` notices that it has died
        if isinstance(message, list):
            self.sent.append(dict(message))
        self.flush_sent = message == FLUSH

    def kill(self) -> None:
        if self.process is not None:
            if not self.ready:
                self.process.join(1.0)  # if it is ending by itself, its exit code says why
            self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()


class WorkerPool(Generic[T, R]):
    """Runs tasks in worker processes, and restarts those that die. A context manager: leaving it kills the processes.

    Args:
        workers: settings of each process.
        timeout: seconds without a message after which a process with tasks in flight is restarted.
    """

    role = "the worker process"
    """What messages call a process."""
    remedy = "see whether `ssv2rt doctor` finds what is wrong"
    """What to do if processes die while starting."""

    def __init__(self, workers: Sequence[WorkerSettings], *, timeout: float) -> None:
        self._processes: list[_Process[T]] = [_Process(settings) for settings in workers]
        self._timeout = timeout
        self._suspects: deque[list[tuple[int, T]]] = deque()
        self._most_results: dict[int, int] = {}
        """By number of a suspect: the most results that an attempt at it has given."""
        self._failed_starts = 0
        self.restarts = 0

    def learned(self, option: str) -> list[Any]:
        """What the processes have learned of an option; see `Worker`."""
        return [p.settings.options[option] for p in self._processes if option in p.settings.options]

    def failed(self, task: T, reason: str, exit_code: int | None) -> R:
        """The result of a task that ended its process. The reason is `decoder crashed` or `timeout`."""
        raise NotImplementedError

    def suspect(self, task: T) -> T:
        """The task as it is retried, after it was in flight when its process died."""
        return task

    def is_last(self, result: R) -> bool:
        """Whether a result is its task's last one."""
        return True

    def __enter__(self) -> Any:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()

    def run(self, tasks: Iterable[tuple[int, T]]) -> Iterator[list[tuple[int, R]]]:
        """Yields lists of (number, result) for all tasks, in the order in which they are done.

        The numbers identify the tasks. Results of an unfinished task whose process died may be yielded twice.

        Raises:
            UserError: a process cannot start, or a worker raised it.
        """
        source: Iterator[tuple[int, T]] | None = iter(tasks)
        while True:
            for process in self._processes:
                if process.ready:
                    source = self._feed(process, source)
            if source is None and not self._suspects and not any(process.sent for process in self._processes):
                return
            for process, message in self._receive():
                if message is None:
                    yield from self._restart(process, "decoder crashed")
                elif isinstance(message, UserError):
                    raise message
                elif isinstance(message, tuple) and message[0] == LEARNED:
                    process.settings = replace(process.settings, options=process.settings.options | message[1])
                elif isinstance(message, tuple):
                    assert message[0] == READY
                    process.ready, process.batch_size, process.batches_ahead = True, *message[1:]
                else:
                    self._failed_starts = 0
                    self._note(process, message)
                    yield message
            for process in self._processes:
                limit = self._timeout if process.ready else _START_TIMEOUT
                if (process.sent or not process.ready) and time.monotonic() - process.last_activity > limit:
                    yield from self._restart(process, "timeout")

    def _feed(self, process: _Process[T], source: Iterator[tuple[int, T]] | None) -> Iterator[tuple[int, T]] | None:
        """Sends a process what it can take. Returns the source, or None if it has ended."""
        if self._suspects:
            if not process.sent:
                process.send(self._suspects.popleft())
                process.send(FLUSH)
                process.isolating = True
        elif not (process.isolating and process.sent):
            process.isolating = False
            while source is not None and len(process.sent) < process.batches_ahead:
                if batch := list(islice(source, process.batch_size)):
                    process.send(batch)
                else:
                    source = None
        if process.sent and not process.flush_sent and (source is None or self._suspects):
            process.send(FLUSH)
        return source

    def _note(self, process: _Process[T], part: list[tuple[int, R]]) -> None:
        """Notes which tasks are done."""
        for number, result in part:
            if not self.is_last(result):
                process.results[number] += 1
                continue
            process.results.pop(number, None)
            self._most_results.pop(number, None)
            next(batch for batch in process.sent if number in batch).pop(number)
        while process.sent and not process.sent[0]:
            process.sent.popleft()

    def _receive(self) -> Iterator[tuple[_Process[T], Any]]:
        """Waits a moment for messages of processes. The message is None if the process has died."""
        readable = wait([process.connection for process in self._processes if process.connection], _POLL_INTERVAL)
        for process in self._processes:
            if process.connection is None or process.connection not in readable:
                continue
            process.last_activity = time.monotonic()
            try:
                yield process, process.connection.recv()
            except (EOFError, ConnectionResetError):
                yield process, None

    def _restart(self, process: _Process[T], reason: str) -> Iterator[list[tuple[int, R]]]:
        """Restarts a process that died or hangs. Its tasks become suspects, or a single suspect fails."""
        suspects = [list(batch.items()) for batch in process.sent if batch]
        isolating, results = process.isolating, process.results
        process.kill()
        code = process.process.exitcode
        self._failed_starts += not process.ready
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UserError(f"{self.role} ends before it has begun (exit code {code}); {self.remedy}")
        self.restarts += 1
        process.start()
        # A task that got further than ever before is not what ended its process: it goes on being tried.
        further = {number for number, count in results.items() if count > self._most_results.get(number, 0)}
        self._most_results |= {number: results[number] for number in further}
        if isolating and len(suspects) == 1:
            (batch,) = suspects
            if len(batch) == 1 and not further:
                ((number, task),) = batch
                yield [(number, self.failed(task, reason, code))]
                return
            middle = len(batch) // 2
            suspects = [part for part in (batch[:middle], batch[middle:]) if part]
        self._suspects.extendleft(
            reversed([[(number, self.suspect(task)) for number, task in batch] for batch in suspects])
        )


_hiding = threading.Lock()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps a process that is spawned here from importing the main module, which it does not need.

    A script without `if __name__ == "__main__"` would run from its beginning in each process.
    """
    with _hiding:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _work(connection: Connection, settings: WorkerSettings, log_level: int) -> None:
    """The main function of a worker process. It runs until the pool is gone. `log_level` is for logging to stderr."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    follow_parent()  # on Ctrl-C the pool kills this process
    log_to_stderr(log_level)
    # A thread receives messages at once: both ends would deadlock if each were blocked in `send`.
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    started = ended = False
    reported: dict[str, Any] = {}

    def batches() -> Iterator[list[tuple[int, Any]]]:
        nonlocal ended
        while (message := messages.get()) != FLUSH:
            if message is None:
                ended = True
                return
            yield message

    with contextlib.suppress(BrokenPipeError):
        try:
            module, _, name = settings.factory.partition(":")
            worker: Worker[Any, Any] = getattr(importlib.import_module(module), name)(**settings.options)
            connection.send((READY, worker.batch_size, worker.batches_ahead))
            started = True
            threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
            while not ended:
                for part in worker.run(batches()):
                    if (learned := worker.learned()) != reported:
                        reported = learned
                        connection.send((LEARNED, learned))
                    connection.send(part)
        except UserError as error:
            connection.send(error)
        except (MemoryError, ImportError, RuntimeError) as error:
            if started or not says_out_of_memory(error):
                raise  # a task may be the cause
            connection.send(UserError(f"a worker process is out of memory ({error}); {MORE_MEMORY}"))
    os._exit(0)  # do not wait for threads that hang in a decoder


def _listen(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Passes on messages, and None at the end."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.put(connection.recv())
    messages.put(None)
