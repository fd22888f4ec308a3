"""The Ray actor that scores on a node of the cluster. It supervises one worker process, on one GPU or some CPU cores."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pickle
import queue
import sys
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
from ssv2rt.core.temporary import outer_temporary_folder
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.ray_nodes import check_version
from ssv2rt.scoring.row import IS_LAST, WINDOW, Row
from ssv2rt.scoring.supervisor import Supervisor, Task
from ssv2rt.scoring.worker import open_same_bundle

PACK, ROWS = "pack", "rows"
"""Columns of the blocks that the actor receives and yields. Both hold pickles: (pack number, tasks), and a list of (video
number, row). A pack is a list of videos that is sent to an actor as one block."""


class RayActor:
    """A callable class for Ray Data around a `Supervisor` with one worker. Ray calls it from several threads at once.

    Args:
        pack_queue: handle of the `PackQueue` actor, which counts attempts.
        settings: settings of the worker.
        bundle: Ray object reference to the result of `read_bundle`; None if `settings` need no bundle.
        name: the bundle's digest, which is the name of its folder in this node's cache.
        version: version of this package on the driver.
        timeout: see `Supervisor`.
        cores: CPU cores to use; 0 for no limit.
        max_attempts: how often a pack may be started, by any actor.
        rows: rows in a block that is yielded.
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
        max_attempts: int,
        rows: int,
    ) -> None:
        self._pack_queue, self._max_attempts = pack_queue, max_attempts
        self._rows_per_block = rows
        self._inbox: queue.SimpleQueue[tuple[list[Task], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._owners: dict[int, tuple[int, queue.SimpleQueue[Any]]] = {}
        """By the number that a video has in this actor: its number in the run, and the queue that waits for its rows."""
        self._numbers = itertools.count()

        def supervise() -> None:
            try:
                check_version("a machine of the cluster", ssv2rt.__version__, version)
                # Otherwise the spawned worker would import Ray's main program.
                vars(sys.modules["__main__"])["__file__"] = None
                core_lock = reserve_cores(cores) if cores else None
                with contextlib.closing(core_lock) if core_lock else contextlib.nullcontext():
                    self._supervise(_local_settings(settings, bundle, name), timeout)
            except BaseException as error:
                self._fail(error)

        # A thread that lives as long as the actor: the kernel kills a worker when the thread that started it ends
        # (PR_SET_PDEATHSIG), and Ray's own threads may come and go.
        threading.Thread(target=supervise, daemon=True).start()

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """Yields the rows of packs in the order of their videos, in blocks of a fixed number of rows.

        The blocks must be reproducible: when a pack is retried, Ray assumes that block n equals block n of the first attempt.
        """
        for pack in packs[PACK].to_pylist():
            number, tasks = pickle.loads(pack)
            if tasks:
                self._check_attempts(number, tasks)
            answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._inbox.put((tasks, answers))
            rows = rows_in_order([number for number, _ in tasks], answers)
            while block := list(itertools.islice(rows, self._rows_per_block)):
                yield pa.table({ROWS: pa.array([pickle.dumps(block)], pa.binary())})

    def _check_attempts(self, number: int, tasks: list[Task]) -> None:
        import ray

        if ray.get(self._pack_queue.start_attempt.remote(number)) > self._max_attempts:
            first, last = (escape_non_utf8(tasks[at][1].name) for at in (0, -1))
            raise UserError(
                f"the {len(tasks)} videos from '{first}' to '{last}' have ended Ray's process {self._max_attempts} times, as "
                f"happens when memory runs out; score them elsewhere, and go on with --resume"
            )

    def _supervise(self, settings: WorkerSettings, timeout: float) -> None:
        with Supervisor([settings], timeout=timeout) as supervisor:
            while True:
                for answer in supervisor.score(self._tasks()):
                    for here, row in answer:
                        number, owner = self._owners[here]
                        owner.put((number, row))
                        if row.get(IS_LAST, True):
                            del self._owners[here]

    def _tasks(self) -> Iterator[Task]:
        """Yields videos until none is left for now; blocks until there is a first one."""
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
        """Passes an error to all callers that wait for rows, now or later. Never returns."""
        for _, owner in self._owners.values():
            owner.put(error)
        while True:
            self._inbox.get()[1].put(error)


def rows_in_order(numbers: list[int], answers: queue.SimpleQueue[Any]) -> Iterator[tuple[int, Row]]:
    """Yields rows in the order of their videos and windows, each as soon as all before it are there.

    Args:
        numbers: numbers of the videos, in order.
        answers: receives (video number, row) in any order, or an error, which is raised. Windows may come twice.
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
                continue  # repeated, because the worker was restarted
            windows, done = windows + 1, row.get(IS_LAST, True)
            yield number, row


def read_bundle(bundle: Bundle) -> dict[str, bytes]:
    """The files of an engine bundle: their content by name. Raises UserError if they are not those that were opened."""
    files = {file.name: file.read_bytes() for file in bundle.path.iterdir()}
    open_same_bundle(bundle.path, bundle.digest)
    return files


def _local_settings(settings: WorkerSettings, bundle: Any, name: str) -> WorkerSettings:
    """The worker's settings with this node's copy of the bundle and the actor's own GPU."""
    options = dict(settings.options)
    if bundle is not None:
        options["bundle"] = str(_cached_bundle(bundle, name))
    if options.get("device") is not None:
        options["device"] = 0  # Ray sets CUDA_VISIBLE_DEVICES to the actor's own GPU
    return replace(settings, options=options)


def _cached_bundle(bundle: Any, name: str) -> Path:
    """The folder of the bundle in the user's cache, which all actors of this node share. Fetched through Ray on first use."""
    import ray

    folder = cache_folder() / "engines" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(UserError):
            return open_same_bundle(folder, name).path
        files: Mapping[str, bytes] = ray.get(bundle)
        with atomic_folder(folder) as temporary:
            for file, content in files.items():
                (temporary / file).write_bytes(content)
        return open_same_bundle(folder, name).path


def reserve_cores(count: int) -> Any:
    """Pins this process and its children to `count` cores that no other actor on this machine has reserved.

    If the machine is too small for two actors, or all cores are reserved, nothing is pinned.

    Returns:
        A lock file that reserves the cores until it is closed; None if nothing was pinned.
    """
    available = sorted(os.sched_getaffinity(0))
    for number in range(len(available) // count if 2 * count <= len(available) else 0):
        path = os.path.join(outer_temporary_folder(), f"ssv2rt-{os.getuid()}-cores-{count}-{number}")
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        os.sched_setaffinity(0, available[number * count : (number + 1) * count])
        return lock
    return None
