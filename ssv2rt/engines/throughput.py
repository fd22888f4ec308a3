"""Measures the throughput of engines on the machine that builds them, to warn if quantization gains no speed."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ssv2rt.engines.base import Runner

_ROUNDS = 4


def clips_per_second(runners: Mapping[str, Runner], clips: torch.Tensor) -> dict[str, float]:
    """Clips per second of each engine: the best of several rounds in which the engines take turns.

    Each engine has `in_flight` batches in flight.

    Args:
        runners: the engines, by name.
        clips: a batch, uint8 (N, T, S, S, 3), on the device where the engines are fastest.
    """
    best = dict.fromkeys(runners, 0.0)
    for number in range(_ROUNDS + 1):
        for name, runner in runners.items():
            start = time.perf_counter()
            waits = [runner.start(clips) for _ in range(runner.in_flight)]
            for wait in waits:
                wait()
            if number:  # round 0 is a warm-up
                best[name] = max(best[name], len(waits) * len(clips) / (time.perf_counter() - start))
    return {name: round(rate, 2) for name, rate in best.items()}


def slower_than_fp16_warning(precision: str, rates: Mapping[str, float]) -> str:
    """The warning about a quantized engine that is not faster than the fp16 engine; empty if it is faster.

    Args:
        rates: clips per second of `precision` and of fp16.
    """
    ours, theirs = rates[precision], rates["fp16"]
    if ours > theirs:
        return ""
    return f"{precision} is not faster here: {ours:g} clips/s, and {theirs:g} in fp16, which loses less; take --fp16"
