"""Rates side by side: contestants take turns, so that a noisy machine treats all alike."""

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

Contestant = Callable[[], float | None]
"""Does a fixed piece of work, and may return the seconds that count."""


@dataclass(frozen=True)
class Rate:
    """Units per second over the rounds."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""


def race(contestants: Mapping[str, Contestant], *, units: int, rounds: int) -> dict[str, Rate]:
    """Lets each contestant do its work once to warm up, and then once in every round.

    Args:
        contestants: by name.
        units: how much each does in a round, such as clips.
        rounds: at least 2.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with Progress("benchmark", (rounds + 1) * len(contestants), unit="turns") as progress:
        for number in range(rounds + 1):
            for name, work in contestants.items():
                start = time.perf_counter()
                counted = work()
                if number:
                    rates[name].append(units / (counted or time.perf_counter() - start))
                progress.add(1, now=name)
    return {name: _rate(values) for name, values in rates.items()}


def now(device: torch.device) -> float:
    """Seconds on a clock, when a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {"cpu": cpu_name(), "cores": cores(), "platform": platform.platform()}


def _rate(values: list[float]) -> Rate:
    low, median, high = statistics.quantiles(values, n=4)
    return Rate(median, low, high)
