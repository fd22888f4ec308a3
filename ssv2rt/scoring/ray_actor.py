"""What runs on the machines of a cluster: a supervised process that scores, for each GPU or each share of the cores."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pickle
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

import ssv2rt
from ssv2rt.core.atomic_files import atomic_folder
from ssv2rt.core.errors import UserError
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.dataset.listing import as_text
from ssv2rt.scoring.ray_nodes import check_version
from ssv2rt.scoring.row import LAST, WINDOW, Row
from ssv2rt.scoring.supervisor import Supervisor, Task
from ssv2rt.scoring.worker import WorkerSettings

PACK, ROWS = "pack", "rows"
"""The columns of what comes and goes: a pack's number with its tasks, and rows with the numbers of their videos; pickled."""


class RayActor:
    """A `Supervisor` with one process, for Ray, which calls it from several threads at once.

    Args:
        pack_queue: where packs come from.
        settings: what the process makes its scorer of.
        bundle: Ray's reference to what `read_bundle` gives; None if `settings` need none.
        name: what the bundle is kept under on this machine.
        version: of this package, where the run was started.
        timeout: see `Supervisor`.
        cores: how many it may use; 0 for all of the machine's.
        tries: how often a pack is begun with, by any process.
        rows: in a block that it gives.
    """

    def __init__(
        self,
        *,
        pack_queue: Any,
        settings: WorkerSettings,
        bundle: Any,
        name: str,
        version: str,
        timeout: float,
        cores: int,
        tries: int,
        rows: int,
    ) -> None:
        self._feed, self._tries = pack_queue, tries
        self._rows = rows
        self._inbox: queue.SimpleQueue[tuple[list[Task], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._owners: dict[int, tuple[int, queue.SimpleQueue[Any]]] = {}
        """Where rows go, and under which number, by the number that a video has here."""
        self._numbers = itertools.count()

        def supervise() -> None:
            try:
                check_version("a machine of the cluster", ssv2rt.__version__, version)
                vars(sys.modules["__main__"])["__file__"] = None  # what scores need not load Ray, whose program this is
                held = keep_to_own_cores(cores) if cores else None
                with contextlib.closing(held) if held else contextlib.nullcontext():
                    self._supervise(_on_this_machine(settings, bundle, name), timeout)
            except BaseException as error:
                self._fail(error)

        # The process that scores dies with the thread that has started it: this one lives as long as Ray's process.
        threading.Thread(target=supervise, daemon=True).start()

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """The rows of packs, in the order of their videos, in blocks of a fixed number.

        Where a pack is tried again, Ray takes each block of the second time for the same one of the first.
        """
        for pack in packs[PACK].to_pylist():
            number, tasks = pickle.loads(pack)
            if tasks:
                self._check_tries(number, tasks)
            answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._inbox.put((tasks, answers))
            rows = in_order([number for number, _ in tasks], answers)
            while block := list(itertools.islice(rows, self._rows)):
                yield pa.table({ROWS: pa.array([pickle.dumps(block)], pa.binary())})

    def _check_tries(self, number: int, tasks: list[Task]) -> None:
        import ray

        if ray.get(self._feed.begin.remote(number)) > self._tries:
            first, last = (as_text(tasks[at][1].name) for at in (0, -1))
            raise UserError(
                f"the {len(tasks)} videos from '{first}' to '{last}' have ended Ray's process {self._tries} times, as what "
                f"takes all memory does; score them elsewhere, and go on with --resume"
            )

    def _supervise(self, settings: WorkerSettings, timeout: float) -> None:
        with Supervisor([settings], timeout=timeout) as supervisor:
            while True:
                for answer in supervisor.score(self._tasks()):
                    for here, row in answer:
                        number, owner = self._owners[here]
                        owner.put((number, row))
                        if row.get(LAST, True):
                            del self._owners[here]

    def _tasks(self) -> Iterator[Task]:
        """Videos, until there are none for now; waits for the first."""
        tasks, answers = self._inbox.get()
        while True:
            known = [(next(self._numbers), video) for _, video in tasks]
            self._owners |= {here: (number, answers) for (here, _), (number, _) in zip(known, tasks, strict=True)}
            yield from known
            try:
                tasks, answers = self._inbox.get_nowait()
            except queue.Empty:
                return

    def _fail(self, error: BaseException) -> None:
        """Gives an error to all that wait for rows, and to all that will."""
        for _, owner in self._owners.values():
            owner.put(error)
        while True:
            self._inbox.get()[1].put(error)


def in_order(numbers: list[int], answers: queue.SimpleQueue[Any]) -> Iterator[tuple[int, Row]]:
    """Rows in the order of their videos, and of their windows, as soon as it is their turn.

    Args:
        numbers: of the videos.
        answers: numbers with rows, or an error, which is raised.
    """
    waiting: dict[int, list[Row]] = {number: [] for number in numbers}
    for number in numbers:
        windows, done = 0, False
        while not done:
            if not waiting[number]:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                waiting[answer[0]].append(answer[1])
                continue
            row = waiting[number].pop(0)
            if row.get(WINDOW, windows) < windows:
                continue  # comes again, since the process had died
            windows, done = windows + 1, row.get(LAST, True)
            yield number, row


def read_bundle(folder: Path) -> dict[str, bytes]:
    """The files of an engine bundle."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _on_this_machine(settings: WorkerSettings, bundle: Any, name: str) -> WorkerSettings:
    """Settings that fit this machine: its copy of the bundle, and its GPU."""
    options = dict(settings.options)
    if bundle is not None:
        options["bundle"] = str(_kept(bundle, name))
    if options.get("device") is not None:
        options["device"] = 0  # Ray shows a process nothing but its own
    return replace(settings, options=options)


def _kept(bundle: Any, name: str) -> Path:
    """A bundle in the user's cache, where processes of one machine share it."""
    import ray

    from ssv2rt.engines.bundle import open_bundle

    folder = cache_folder() / "engines" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(UserError):
            return open_bundle(folder).path
        files: Mapping[str, bytes] = ray.get(bundle)
        with atomic_folder(folder) as temporary:
            for file, content in files.items():
                (temporary / file).write_bytes(content)
        return open_bundle(folder).path


def keep_to_own_cores(count: int) -> Any:
    """Keeps this process, and those that it starts, to some cores that no other such process on this machine has.

    A process that has no room for another beside it keeps the whole machine.

    Returns:
        What holds the cores until it is closed; None if there is nothing to be held.
    """
    mine = sorted(os.sched_getaffinity(0))
    for number in range(len(mine) // count if 2 * count <= len(mine) else 0):
        path = os.path.join(tempfile.gettempdir(), f"ssv2rt-{os.getuid()}-cores-{count}-{number}")
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        os.sched_setaffinity(0, mine[number * count : (number + 1) * count])
        return lock
    return None
