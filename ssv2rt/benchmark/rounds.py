"""Benchmark rounds: the workloads take turns, so that noise of the machine affects all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.hardware import cpu_name
from ssv2rt.core.progress import Progress

Workload = Callable[[], float | None]
"""Does a fixed amount of work. It may return the seconds that count, if they are not the whole time of the call."""


@dataclass(frozen=True)
class Rate:
    """Throughput over the rounds, in units per second."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""


def run_rounds(workloads: Mapping[str, Workload], *, units: int, rounds: int) -> dict[str, Rate]:
    """Runs each workload once to warm up, and then once in every timed round.

    Args:
        workloads: by name.
        units: amount of work of each call, such as a number of clips.
        rounds: number of timed rounds, at least 2.

    Returns:
        Rates by name.
    """
    rates: dict[str, list[float]] = {name: [] for name in workloads}
    with Progress("benchmark", (rounds + 1) * len(workloads), unit="turns") as progress:
        for number in range(rounds + 1):
            for name, work in workloads.items():
                start = time.perf_counter()
                seconds = work()
                if number:  # round 0 is the warm-up
                    rates[name].append(units / (seconds or time.perf_counter() - start))
                progress.add(1, now=name)
    return {name: _rate(values) for name, values in rates.items()}


def synchronized_time(device: torch.device) -> float:
    """Waits until the device is idle, and returns `time.perf_counter()`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_machine() -> dict[str, object]:
    """The CPU and platform of a measurement."""
    return {"cpu": cpu_name(), "cores": cores(), "platform": platform.platform()}


def _rate(values: list[float]) -> Rate:
    low, median, high = statistics.quantiles(values, n=4)
    return Rate(median, low, high)
