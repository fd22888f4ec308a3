"""Scoring on the machines of a Ray cluster, by Ray Data.

driver: videos -> packs -> Feed        Ray Data: read task -> Process on each GPU, or on each share of the cores
        rows   <-------------------------------- blocks of rows, of the same videos however often they are tried

The driver keeps the journal and writes the output, as without a cluster. It lets so many packs of videos be under way as keep
the cluster busy, and no more. Ray Data gives a pack whose process or machine has died to another one; rows that come twice by
that are dropped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import ssv2rt
from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import INFO, Bundle, sha256
from ssv2rt.scoring.ray_actor import PACK, ROWS, RayActor, read_bundle
from ssv2rt.scoring.ray_nodes import check_versions, connect, first_line, on, ray_nodes, slot_for
from ssv2rt.scoring.row import LAST
from ssv2rt.scoring.supervisor import Answer, Task
from ssv2rt.scoring.worker import WorkerSettings

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


_AT_ONCE = 2
"""Packs that a process works on, so that it never runs dry between them."""
_AHEAD = 2 * _AT_ONCE
"""Packs that a process has been sent. Below 1.75 times those it works on, Ray Data would not make use of new machines."""
_BATCHES, _MOST = 8, 128
"""Of the engine in a pack, so that two packs fill all that it has under way; and videos at most."""
_ROWS, _LONG_ROWS = 64, 8
"""In a block; the latter with many numbers each. Blocks below 100 kB come in messages, and do not go down with a machine."""
_TRIES = 10
"""Of a pack: a video that takes all memory of a machine, say, must not end Ray's processes there for ever."""
_LOOK_AGAIN = 30.0
"""Seconds between looks at how large the cluster is."""


class RayBackend:
    """Scores videos on a Ray cluster. Use it as a context: entering it connects, or starts a cluster of this machine.

    Args:
        address: HOST:PORT, or `AUTO`.
        settings: what each process makes its scorer of.
        bundle: the engine, of which the machines are given copies; None if `settings` need none.
        batch: videos in one of its batches.
        timeout: see `Supervisor`.
    """

    def __init__(
        self, address: str, settings: WorkerSettings, *, bundle: Bundle | None, batch: int, timeout: float
    ) -> None:
        self.trusted: dict[str, Decision] = {}
        """Of machines elsewhere nothing is told."""
        self._address, self._settings, self._bundle, self._timeout = address, settings, bundle, timeout
        self._pack = min(_MOST, _BATCHES * batch)
        self._folder: str | None = None
        self._looked, self._slots = 0.0, 0

    def __enter__(self) -> RayBackend:
        """Connects.

        Raises:
            UsageError: the address is none.
            UserError: Ray is not installed, no cluster is there, or its machines are not fit for the work.
        """
        try:
            self._folder = connect(self._address)
            check_versions(ray_nodes())
            self._slot = slot_for(self._bundle.info.target if self._bundle else "", ray_nodes())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ImportError):
            import ray

            ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]:
        """The rows of all videos, with their numbers, as they come.

        Raises:
            UserError: the engine cannot be loaded on a machine, or the cluster has failed.
        """
        import ray

        here = ray.get_runtime_context().get_node_id()
        pack_queue: Any = ray.remote(num_cpus=0, label_selector=on(here))(PackQueue).remote()
        under_way: dict[int, _Pack] = {}
        """By the number of each video that has no row yet."""
        fed = whole = 0
        more = True
        blocks = self._blocks(pack_queue, here)
        with contextlib.closing(blocks):
            while True:
                while more and fed - whole < self._window():
                    if more := bool(tasks := list(islice(videos, self._pack))):
                        under_way |= dict.fromkeys((number for number, _ in tasks), _Pack(fed, len(tasks)))
                        pack_queue.put.remote(fed, pickle.dumps((fed, tasks)))
                        fed += 1
                    else:
                        pack_queue.close.remote(fed)
                answer = next(blocks, None)
                if answer is None:
                    break
                answer = [(number, row) for number, row in answer if number in under_way]
                for number, row in answer:
                    if row.get(LAST, True):
                        pack = under_way.pop(number)
                        pack.left -= 1
                        if not pack.left:
                            whole += 1
                            pack_queue.drop.remote(pack.number)
                if answer:
                    yield answer
        if under_way:
            raise UserError(f"the cluster has lost {len(under_way)} videos; go on with --resume")

    def _window(self) -> int:
        """Packs that are under way at most. A cluster that has grown takes more."""
        if time.monotonic() - self._looked > _LOOK_AGAIN:
            # What a machine that is gone was sent is still counted: it may have to wait until another one has room.
            self._slots = max(self._slots, self._slot.count(ray_nodes()))
            self._looked = time.monotonic()
        return self._slots * (_AHEAD + 1) + 2

    def _blocks(self, pack_queue: Any, here: str) -> Generator[Answer]:
        """What comes back."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # a block goes on as it is made, and does not wait for others
        context.execution_no_progress_timeout_s = -1  # it is for `timeout` to say what is too long
        gpu = {"num_gpus": 1} if self._slot.gpu else {"num_cpus": self._slot.cores}
        packs = ray.data.read_datasource(
            _source(pack_queue), num_cpus=0, override_num_blocks=1, label_selector=on(here)
        )
        rows = packs.map_batches(
            RayActor,
            fn_constructor_kwargs={
                "pack_queue": pack_queue,
                "settings": self._settings,
                "bundle": ray.put(read_bundle(self._bundle.path)) if self._bundle else None,
                "name": sha256(self._bundle.path / INFO) if self._bundle else "",
                "version": ssv2rt.__version__,
                "timeout": self._timeout,
                "cores": self._slot.cores,
                "tries": _TRIES,
                "rows": _LONG_ROWS if self._settings.options.get("extra_columns") else _ROWS,
            },
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=self._slot.count(ray_nodes()),
                max_tasks_in_flight_per_actor=_AHEAD,
                max_concurrent_calls_per_actor=_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            **gpu,
        )
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL + 1)  # its files have it all the same
        try:
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for answer in block[ROWS].to_pylist():
                    yield pickle.loads(answer)
        except Exception as error:
            raise _shown(error) from None


@dataclass
class _Pack:
    number: int
    left: int
    """Videos in it that have no row yet."""


class PackQueue:
    """Holds packs on the driver's machine until their rows are there, so that they can be read a second time.

    Ray may run calls in another order than that in which they were made.
    """

    def __init__(self) -> None:
        self._packs: dict[int, bytes] = {}
        self._tries: dict[int, int] = {}
        self._done: set[int] = set()
        self._all_done = 0
        """Packs below this number are done with, beside those in `_done`."""
        self._end: int | None = None
        self._news = asyncio.Condition()

    async def put(self, number: int, pack: bytes) -> None:
        """Takes a pack."""
        async with self._news:
            self._packs[number] = pack
            self._news.notify_all()

    async def close(self, end: int) -> None:
        """No packs from this number on are to come."""
        async with self._news:
            self._end = end
            self._news.notify_all()

    async def begin(self, number: int) -> int:
        """Tells how often a process has begun with a pack, with this time."""
        self._tries[number] = self._tries.get(number, 0) + 1
        return self._tries[number]

    async def drop(self, number: int) -> None:
        """Forgets a pack."""
        del self._packs[number]
        self._tries.pop(number, None)
        self._done.add(number)
        while self._all_done in self._done:
            self._done.remove(self._all_done)
            self._all_done += 1

    async def take(self, number: int) -> bytes | None:
        """A pack, when it comes, or an empty one if it is done with; None behind the last."""
        async with self._news:
            await self._news.wait_for(lambda: number in self._packs or number == self._end or self._is_done(number))
        return _NOTHING if self._is_done(number) else self._packs.get(number)

    def _is_done(self, number: int) -> bool:
        return number < self._all_done or number in self._done


_NOTHING = pickle.dumps((-1, []))


def _source(pack_queue: Any) -> Any:
    """The feed as Ray Data reads it: by one task, which waits for packs, and gives each as a block."""
    import ray
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pa.Table]:
        number = 0
        while (pack := ray.get(pack_queue.take.remote(number))) is not None:
            yield pa.table({PACK: pa.array([pack], pa.binary())})
            number += 1

    class Packs(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]

    return Packs()


def _shown(error: BaseException) -> UserError:
    """What a user is told of an error: our own words, if it is one of ours that has come through Ray."""
    cause: BaseException | None = error
    while cause is not None:
        error = cause
        if isinstance(error, UserError):
            return error
        cause = getattr(error, "cause", None) or error.__cause__
    return UserError(f"the cluster has failed: {first_line(error)}; see `ray status`, and go on with --resume")
