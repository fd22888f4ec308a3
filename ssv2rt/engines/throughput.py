"""How fast engines are on the machine that builds them, so that what is not worth its loss is said."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ssv2rt.engines.base import Runner

_ROUNDS = 4


def clips_per_second(runners: Mapping[str, Runner], clips: torch.Tensor) -> dict[str, float]:
    """Of each engine the best of some rounds in which they take turns, with as many batches under way as it is worth.

    Args:
        runners: by name.
        clips: a batch, uint8 (N, T, S, S, 3), on the device where the engines are fastest.
    """
    best = dict.fromkeys(runners, 0.0)
    for number in range(_ROUNDS + 1):
        for name, runner in runners.items():
            start = time.perf_counter()
            waits = [runner.start(clips) for _ in range(runner.in_flight)]
            for wait in waits:
                wait()
            if number:  # the first one also sets up
                best[name] = max(best[name], len(waits) * len(clips) / (time.perf_counter() - start))
    return {name: round(rate, 2) for name, rate in best.items()}


def not_faster(precision: str, rates: Mapping[str, float]) -> str:
    """What is to be said of a quantised engine that is not faster than the one in fp16; empty if it is.

    Args:
        rates: clips per second of `precision` and of fp16.
    """
    ours, theirs = rates[precision], rates["fp16"]
    if ours > theirs:
        return ""
    return f"{precision} is not faster here: {ours:g} clips/s, and {theirs:g} in fp16, which loses less; take --fp16"
