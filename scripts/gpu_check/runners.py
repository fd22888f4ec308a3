"""PyTorch in the place of an engine, and how fast a runner is with batches in flight."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable

import torch

from ssv2rt.core.hardware import native_bf16
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.models.clip_model import ClipModel

Network = Callable[[torch.Tensor], torch.Tensor]
"""uint8 clips (N, T, S, S, 3) to logits (N, K)."""


class TorchRunner(Runner):
    """A network as it is, on the device that it is on: logits come back to the CPU, as an engine's do."""

    in_flight = 2

    def __init__(self, network: Network, where: torch.device) -> None:
        self._network, self._where = network, where

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        with torch.inference_mode():
            logits = self._network(clips.to(self._where, non_blocking=True))
        return lambda: Outputs(logits.float().cpu(), None)


def half(where: torch.device) -> torch.dtype:
    """bf16, or fp16 on a GPU without it."""
    return torch.bfloat16 if native_bf16(where) or where.type == "cpu" else torch.float16


def fast(model: ClipModel, where: torch.device, kind: torch.dtype) -> Network:
    """A copy of a network in channels-last-3d and mixed precision."""
    return cast(copy.deepcopy(model).channels_last().to(where), kind)


def cast(network: Network, kind: torch.dtype) -> Network:
    def run(clips: torch.Tensor) -> torch.Tensor:
        with torch.autocast(clips.device.type, kind):
            return network(clips)

    return run


def in_flight(runner: Runner, clips: torch.Tensor, seconds: float) -> float:
    """Clips per second with as many batches under way as the runner is worth."""
    waiting: deque[Callable[[], Outputs]] = deque()
    for _ in range(3):
        runner(clips)
    start, done = time.perf_counter(), 0
    while done < 3 or time.perf_counter() - start < seconds:
        waiting.append(runner.start(clips))
        if len(waiting) >= runner.in_flight:
            waiting.popleft()()
            done += 1
    while waiting:
        waiting.popleft()()
        done += 1
    return done * len(clips) / (time.perf_counter() - start)
