"""Distributed training with torchrun: the process group, its collective operations, and the case of a single process."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError, UserError, one_line
from ssv2rt.core.hardware import choose_device
from ssv2rt.training.liveness import START_SECONDS, Liveness, failure

if TYPE_CHECKING:  # benchmarks train without a data set, and need no samplers
    from ssv2rt.pipelines.samplers import Shard

R = TypeVar("R")
E = TypeVar("E", bound=Exception)


@dataclass(frozen=True)
class Group:
    """This process's place in the process group: its rank, the world size, and its device.

    With a world size of 1, no collective operation is called and no process group is needed.
    """

    rank: int
    size: int
    """The world size."""
    device: torch.device
    speaks: bool = True
    """Whether this process says what all of them know, such as an error: one on each machine does."""
    meeting: Callable[[], None] = field(default=lambda: None, compare=False)
    """Waits, for as long as it takes, until every process has called it."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes files and logs messages."""
        return self.rank == 0

    def shared(self, error: E) -> E:
        """An error that all processes raise, to be raised: one process on each machine will say it."""
        if isinstance(error, UserError):
            error.silent = not self.speaks
        return error

    @property
    def shard(self) -> Shard:
        """This process's part of the data set."""
        from ssv2rt.pipelines.samplers import Shard

        return Shard(self.rank, self.size)

    def sum(self, *values: float) -> list[float]:
        """All-reduces each value as a sum over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        return self.sum(float(value))[0] > 0

    def gather(self, value: R) -> list[R]:
        """The values of all processes, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, buffers: Iterable[torch.Tensor]) -> None:
        """Copies the buffers of rank 0, such as batch norm statistics, to all processes, in place."""
        if self.size > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)

    def from_rank_zero(self, make: Callable[[], R]) -> R:
        """Calls `make` in rank 0 only and returns its result in all processes. An exception is raised in all of them.

        `make` may take any time, and its result may be large.
        """
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        self.meeting()  # a collective operation would give up after some minutes
        dist.broadcast_object_list(outcome, src=0, device=self.device if self.device.type == "cuda" else None)
        if outcome[1] is not None:
            raise self.shared(outcome[1])
        return outcome[0]


_PROCESS_GROUPS: list[object] = []
_NUMBERS = itertools.count()
"""Of the process groups that this process joins one after the other."""


@contextlib.contextmanager
def process_group() -> Iterator[Group]:
    """Joins the process group of torchrun for the time of the block; without torchrun, yields a group of size 1.

    Raises:
        UsageError: this machine has more processes than GPUs.
        UserError: another process has ended, or cannot be reached.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield Group(0, 1, choose_device())
        return
    device, local = choose_device(), int(os.environ.get("LOCAL_RANK", "0"))
    with _lost_processes_as_user_errors(None):
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
    store = PrefixStore(f"ssv2rt-{next(_NUMBERS)}", store)
    liveness = Liveness(store, rank, size, local_rank=local, device=device.type)
    with liveness, _lost_processes_as_user_errors(liveness):
        device = _device_of(device, local)
        # Others are told why this process fails before its connections close.
        with _joined(store, rank, size, device), liveness, _lost_processes_as_user_errors(liveness):
            yield Group(rank, size, device, local == 0, _meeting(store, size, liveness))


def _device_of(device: torch.device, local: int) -> torch.device:
    """The device of a process, given the number that it has on its machine."""
    if device.type != "cuda":
        _share_cores()
        return device
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"process {local + 1} of this machine has no GPU, since the machine has {torch.cuda.device_count()}; "
            f"start torchrun with --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _joined(store: Store, rank: int, size: int, device: torch.device) -> Iterator[None]:
    """In this block, PyTorch's default process group is there."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # Keep a reference to the group beyond that of DistributedDataParallel. DDP's destructor would otherwise destroy the group
    # while it holds the GIL, and deadlock with a thread of the group that waits for the GIL.
    _PROCESS_GROUPS.append(dist.group.WORLD)
    leave = dist.destroy_process_group
    try:
        yield
    except BaseException as error:
        if backend == "nccl" and failure(error):
            # `destroy_process_group` waits for the collective operations on the GPU, which never end if other processes do
            # not take part any more, and signals are not handled meanwhile.
            leave = dist.distributed_c10d._abort_process_group
        raise
    finally:
        leave()


def _meeting(store: Store, size: int, liveness: Liveness) -> Callable[[], None]:
    numbers = itertools.count()

    def meet() -> None:
        key = f"meeting-{next(numbers)}"
        store.add(key, 1)
        liveness.wait(lambda: store.add(key, 0) >= size, lambda: "", float("inf"))

    return meet


@contextlib.contextmanager
def _lost_processes_as_user_errors(liveness: Liveness | None) -> Iterator[None]:
    """Turns an error of a collective operation into one line: another process has ended, or cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, UserError) or not (isinstance(error, dist.DistError) or _says_peer_lost(str(error))):
            raise
        raise (liveness and liveness.known_loss()) or UserError(
            f"rank {os.environ.get('RANK', '0')} has lost another of the processes that train together "
            f"({one_line(error).split('. ')[0]}); see why that ended, and continue with `--resume`"
        ) from None


def _says_peer_lost(text: str) -> bool:
    return "/gloo/" in text or "ProcessGroup" in text or "NCCL" in text or ("peer" in text and "onnection" in text)


def _share_cores() -> None:
    """Gives each process its part of the cores, as threads of PyTorch.

    torchrun sets OMP_NUM_THREADS to 1, unless the user has set it. Its environment at its start tells one from the other.
    """
    try:
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return
    if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment.split(b"\0")):
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
