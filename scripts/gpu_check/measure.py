"""How long work takes on the GPU or the CPU, what memory it takes, and whether it fits."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_check.record import Missing

NO_GPU = "no GPU that PyTorch can use"
_FULL = ("out of memory", "ALLOC_FAILED", "unable to find an engine")
"""How PyTorch and cuDNN say that memory is short, or that a batch is too large for every kernel."""


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def need_gpu() -> torch.device:
    """The first GPU. Raises Missing where there is none."""
    if not torch.cuda.is_available():
        raise Missing("GPU", NO_GPU)
    return torch.device("cuda", 0)


def without_nvdec() -> str:
    """Why NVDEC cannot be used here; empty if it can."""
    if not torch.cuda.is_available():
        return NO_GPU
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return "no libnvcuvid.so.1; in a container, NVIDIA_DRIVER_CAPABILITIES must name 'video'"
    return ""


def usual_decoder() -> str:
    """A value of `data.decoder` that is fast here: NVDEC; on a GPU without it PyAV; on a CPU DALI's own."""
    if torch.cuda.is_available():
        return "pyav" if without_nvdec() else "nvdec"
    return "dali"


def now(where: torch.device) -> float:
    """The time at which all that was asked of the device is done."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


@dataclass(frozen=True)
class Spent:
    """Seconds of one call."""

    median: float
    low: float
    high: float
    calls: int


def spent(work: Callable[[], object], where: torch.device, *, seconds: float = 1.0, warm: int = 2) -> Spent:
    """Seconds of a call: of blocks of calls, timed by events on a GPU, so that launching is not waited for.

    Args:
        work: what is timed.
        where: the device that it runs on.
        seconds: about how long to measure.
        warm: calls before that.
    """
    for _ in range(warm):
        work()
    start = now(where)
    work()
    once = max(1e-7, now(where) - start)
    blocks = max(1, min(7, int(seconds / once)))
    calls = max(1, min(1000, int(seconds / blocks / once)))
    timed = _on_gpu if where.type == "cuda" else _on_cpu
    times = sorted(timed(work, calls) / calls for _ in range(blocks))
    return Spent(statistics.median(times), times[0], times[-1], blocks * calls)


def _on_gpu(work: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _on_cpu(work: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


def latencies(work: Callable[[], object], *, seconds: float, most: int = 300) -> list[float]:
    """Seconds of single calls that wait for their result, sorted."""
    for _ in range(2):
        work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or (len(times) < most and time.perf_counter() < until):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)


def too_large(work: Callable[[], object]) -> str:
    """Does work that may not fit. Returns why it does not, with the memory freed again; empty if it does.

    Raises:
        RuntimeError: it failed for another reason.
    """
    reason = ""
    try:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if not any(sign in reason for sign in _FULL):
            raise
    if reason:
        free()  # only here: the exception held on to the tensors of its frames
    return reason[:160]


def free() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_peak(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)


def peak_megabytes(where: torch.device) -> float | None:
    """The most that PyTorch has allocated since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(where) / 1e6 if where.type == "cuda" else None


def used_megabytes(where: torch.device) -> float | None:
    """What is in use of the GPU's memory by everybody, DALI and NVDEC among them; None on a CPU."""
    if where.type != "cuda":
        return None
    free_bytes, total = torch.cuda.mem_get_info(where)
    return (total - free_bytes) / 1e6


def resident_megabytes() -> float:
    """Of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024 / 1e6


def product_rate(kind: torch.dtype, where: torch.device, *, size: int, seconds: float) -> float:
    """FLOP/s of the product of two square matrices of random numbers; zeros would run faster than real data."""
    generator = torch.Generator(where).manual_seed(0)
    a, b = (torch.randn(size, size, device=where, generator=generator).to(kind) for _ in range(2))
    out = torch.empty(size, size, device=where, dtype=kind)
    return 2 * size**3 / spent(lambda: torch.mm(a, b, out=out), where, seconds=seconds).median
