"""Scores videos on a Ray cluster, with Ray Data.

driver: videos -> packs -> PackQueue    Ray Data: read task -> a RayActor for each GPU, or for each group of CPU cores
        rows   <------------------------------------ blocks of rows

The driver keeps the journal and writes the output, as it does without a cluster. It limits the packs in flight to what keeps
the cluster busy. When an actor or a node dies, Ray Data retries its packs elsewhere. Rows that arrive twice because of a retry
are dropped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import ssv2rt
from ssv2rt.core.errors import UserError
from ssv2rt.core.temporary import remove_temporary_folder
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.ray_actor import PACK, ROWS, RayActor, read_bundle
from ssv2rt.scoring.ray_nodes import check_versions, connect, first_error_line, on_node, ray_nodes, resources_per_actor
from ssv2rt.scoring.row import IS_LAST
from ssv2rt.scoring.supervisor import Answer, Task

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


_PACKS_IN_WORK = 2
"""Packs that an actor works on at once, so that it never idles between two of them."""
_PACKS_PER_ACTOR = 2 * _PACKS_IN_WORK
"""Packs that Ray Data queues for an actor. With less than 1.75 times those in work it would not scale up to new nodes."""
_BATCHES_PER_PACK, _MAX_VIDEOS_PER_PACK = 8, 128
"""Size of a pack: 8 engine batches, so that two packs fill the scorer's pipeline, but at most 128 videos."""
_ROWS_PER_BLOCK, _VECTOR_ROWS_PER_BLOCK = 64, 8
"""Rows in a block, without and with vector columns. Ray sends blocks below 100 kB inline, so they outlive their node."""
_MAX_ATTEMPTS = 10
"""Attempts at a pack. A video that exhausts a node's memory, for example, must not kill actors forever."""
_RESIZE_INTERVAL = 30.0
"""Seconds between checks of the cluster's size."""


class RayBackend:
    """Scores videos on a Ray cluster. A context manager: entering it connects, or starts a cluster on this machine.

    Args:
        address: HOST:PORT, or `AUTO`.
        settings: settings of each actor's worker.
        bundle: the engine bundle, which is copied to the nodes; None if `settings` need none.
        batch: videos in a batch of the engine.
        timeout: see `Supervisor`.
    """

    def __init__(
        self, address: str, settings: WorkerSettings, *, bundle: Bundle | None, batch: int, timeout: float
    ) -> None:
        self.trusted: dict[str, Decision] = {}
        """Always empty: the actors do not report it."""
        self._address, self._settings, self._bundle, self._timeout = address, settings, bundle, timeout
        self._pack = min(_MAX_VIDEOS_PER_PACK, _BATCHES_PER_PACK * batch)
        self._folder: str | None = None
        self._last_resize, self._actors = 0.0, 0

    def __enter__(self) -> RayBackend:
        """Connects, and checks the nodes.

        Raises:
            UsageError: the address is malformed.
            UserError: Ray is not installed, the cluster does not answer, or its nodes cannot run the engine.
        """
        try:
            self._folder = connect(self._address)
            check_versions(ray_nodes())
            self._resources = resources_per_actor(bool(self._bundle and self._bundle.info.on_gpu), ray_nodes())
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
            remove_temporary_folder(self._folder)
            self._folder = None

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]:
        """Yields the rows of all videos, with the videos' numbers, as they arrive.

        Raises:
            UserError: the engine cannot be loaded on a node, or the cluster has failed.
        """
        import ray

        here = ray.get_runtime_context().get_node_id()
        pack_queue: Any = ray.remote(num_cpus=0, label_selector=on_node(here))(PackQueue).remote()
        pack_of: dict[int, _SentPack] = {}
        """The pack of each video in flight, by the video's number."""
        packs_sent = packs_done = 0
        more = True
        blocks = self._blocks(pack_queue, here)
        with contextlib.closing(blocks):
            while True:
                while more and packs_sent - packs_done < self._max_packs_in_flight():
                    if more := bool(tasks := list(islice(videos, self._pack))):
                        pack_of |= dict.fromkeys((number for number, _ in tasks), _SentPack(packs_sent, len(tasks)))
                        pack_queue.put.remote(packs_sent, pickle.dumps((packs_sent, tasks)))
                        packs_sent += 1
                    else:
                        pack_queue.close.remote(packs_sent)
                answer = next(blocks, None)
                if answer is None:
                    break
                answer = [(number, row) for number, row in answer if number in pack_of]
                for number, row in answer:
                    if row.get(IS_LAST, True):
                        pack = pack_of.pop(number)
                        pack.left -= 1
                        if not pack.left:
                            packs_done += 1
                            pack_queue.drop.remote(pack.number)
                if answer:
                    yield answer
        if pack_of:
            raise UserError(f"the cluster has lost {len(pack_of)} videos; go on with --resume")

    def _max_packs_in_flight(self) -> int:
        """The limit grows with the cluster."""
        if time.monotonic() - self._last_resize > _RESIZE_INTERVAL:
            # It never shrinks: packs of a node that is gone still count, since they may wait for another node.
            self._actors = max(self._actors, self._resources.count(ray_nodes()))
            self._last_resize = time.monotonic()
        return self._actors * (_PACKS_PER_ACTOR + 1) + 2

    def _blocks(self, pack_queue: Any, here: str) -> Generator[Answer]:
        """Runs the Ray Data pipeline, and yields the blocks of rows."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # emit each block at once instead of combining several
        context.execution_no_progress_timeout_s = -1  # `timeout` decides what is too long
        gpu = {"num_gpus": 1} if self._resources.gpu else {"num_cpus": self._resources.cores}
        packs = ray.data.read_datasource(
            _pack_datasource(pack_queue), num_cpus=0, override_num_blocks=1, label_selector=on_node(here)
        )
        rows = packs.map_batches(
            RayActor,
            fn_constructor_kwargs={
                "pack_queue": pack_queue,
                "settings": self._settings,
                "bundle": ray.put(read_bundle(self._bundle)) if self._bundle else None,
                "name": self._bundle.digest if self._bundle else "",
                "version": ssv2rt.__version__,
                "timeout": self._timeout,
                "cores": self._resources.cores,
                "max_attempts": _MAX_ATTEMPTS,
                "rows": _VECTOR_ROWS_PER_BLOCK if self._settings.options.get("extra_columns") else _ROWS_PER_BLOCK,
            },
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=self._resources.count(ray_nodes()),
                max_tasks_in_flight_per_actor=_PACKS_PER_ACTOR,
                max_concurrent_calls_per_actor=_PACKS_IN_WORK,
                enable_true_multi_threading=True,
            ),
            **gpu,
        )
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL + 1)  # Ray still writes its log files
        try:
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for answer in block[ROWS].to_pylist():
                    yield pickle.loads(answer)
        except Exception as error:
            raise _user_error(error) from None


@dataclass
class _SentPack:
    number: int
    left: int
    """Videos in it that are not completely scored."""


class PackQueue:
    """An actor on the driver's node that stores packs until all their rows have arrived, so that Ray can read them again.

    Ray may execute method calls in a different order than they were made in.
    """

    def __init__(self) -> None:
        self._packs: dict[int, bytes] = {}
        self._attempts: dict[int, int] = {}
        self._done: set[int] = set()
        self._done_below = 0
        """All packs below this number are done, and so are those in `_done`."""
        self._end: int | None = None
        self._changed = asyncio.Condition()

    async def put(self, number: int, pack: bytes) -> None:
        """Adds a pack."""
        async with self._changed:
            self._packs[number] = pack
            self._changed.notify_all()

    async def close(self, end: int) -> None:
        """Announces that there are `end` packs in all."""
        async with self._changed:
            self._end = end
            self._changed.notify_all()

    async def start_attempt(self, number: int) -> int:
        """Counts an attempt at a pack. Returns how many there have been, including this one."""
        self._attempts[number] = self._attempts.get(number, 0) + 1
        return self._attempts[number]

    async def drop(self, number: int) -> None:
        """Removes a pack that is done."""
        del self._packs[number]
        self._attempts.pop(number, None)
        self._done.add(number)
        while self._done_below in self._done:
            self._done.remove(self._done_below)
            self._done_below += 1

    async def take(self, number: int) -> bytes | None:
        """Waits for a pack. Returns an empty pack if it is already done, and None after the last pack."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._packs or number == self._end or self._is_done(number))
        return _EMPTY_PACK if self._is_done(number) else self._packs.get(number)

    def _is_done(self, number: int) -> bool:
        return number < self._done_below or number in self._done


_EMPTY_PACK = pickle.dumps((-1, []))


def _pack_datasource(pack_queue: Any) -> Any:
    """A Ray Data source with one read task, which waits for packs and yields each of them as a block."""
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


def _user_error(error: BaseException) -> UserError:
    """The `UserError` that Ray has wrapped, if there is one; otherwise a new one with the first line of the error."""
    cause: BaseException | None = error
    while cause is not None:
        error = cause
        if isinstance(error, UserError):
            return error
        cause = getattr(error, "cause", None) or error.__cause__
    return UserError(f"the cluster has failed: {first_error_line(error)}; see `ray status`, and go on with --resume")
