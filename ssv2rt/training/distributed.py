"""Several processes that train one model, started by torchrun; a process alone is a group of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from ssv2rt.core.errors import UsageError
from ssv2rt.core.hardware import choose_device

if TYPE_CHECKING:  # a group of one trains without any data set: benchmarks do
    from ssv2rt.pipelines.samplers import Shard

R = TypeVar("R")


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        from ssv2rt.pipelines.samplers import Shard

        return Shard(self.rank, self.size)

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return self.sum(float(value))[0] > 0

    def gather(self, value: R) -> list[R]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, buffers: Iterable[torch.Tensor]) -> None:
        """Gives every process the first one's buffers, such as the statistics of batch norm."""
        if self.size > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)

    def from_first(self, make: Callable[[], R]) -> R:
        """What the first process makes, in all of them. Its error ends all of them."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=self.device if self.device.type == "cuda" else None)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


_KEPT: list[object] = []


@contextlib.contextmanager
def group_of_processes() -> Iterator[Group]:
    """The group that torchrun has started this process in, or a group of one.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield Group(0, 1, choose_device())
        return
    device, local = choose_device(), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local + 1} of this machine has no GPU, it has {torch.cuda.device_count()}; "
                f"give torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # DistributedDataParallel must not be the last to hold the group: it would destroy it with Python's lock in hand, and wait
    # for a thread that waits for that lock.
    _KEPT.append(dist.group.WORLD)
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
