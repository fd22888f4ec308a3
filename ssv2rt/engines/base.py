"""The interface that every backend (TensorRT, OpenVINO, AOTInductor) implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Engine
from ssv2rt.engines.bundle import Bundle, BundleInfo


@dataclass(frozen=True)
class Graph:
    """A network that a backend builds an engine from."""

    onnx_file: Path
    """The ONNX graph, already in the precision of the engine."""
    model: nn.Module | None
    """The same network in PyTorch, fp32: uint8 (N, T, S, S, 3) to float32 logits (N, K) and embedding (N, D). None if
    only the ONNX file is available."""


@dataclass(frozen=True)
class BuiltEngine:
    """The result of a backend's build."""

    file: str
    """Name of the engine file, in the folder of the graph."""
    more_files: tuple[str, ...] = ()
    """Names of the other files that the engine consists of."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that the backend needs to run the engine the same way again."""


class Outputs(NamedTuple):
    """The outputs of an engine for N clips."""

    logits: torch.Tensor
    """float32 (N, K), on the CPU."""
    embedding: torch.Tensor | None
    """The input of the classifier: float32 (N, D), on the CPU. None if the engine has no such output."""


class Runner:
    """A loaded engine."""

    in_flight = 1
    """How many batches to start before waiting for the first, for full throughput."""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 clips (N, T, S, S, 3), N within the engine's batch range, to float32 logits (N, K) on the CPU."""
        return self.start(clips)().logits

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        """Starts a batch of clips, without waiting if the backend is asynchronous.

        Returns:
            A function that waits for the batch and returns its outputs.
        """
        raise NotImplementedError


class Backend(Protocol):
    """A module or object of `ssv2rt.engines.backends` that builds and runs one kind of engine."""

    PRECISIONS: tuple[str, ...]
    """The precisions that it can build."""
    WANTS_HALF: bool
    """Whether it takes the precision from the graph, and so needs bf16 graphs in bf16, and the unquantized part of int8
    and fp8 graphs in fp16."""
    RUNS_SHIFTS: bool
    """Whether it runs temporal shifts faster as they are than folded into convolutions, which then have more arithmetic."""

    def unavailable_reason(self) -> str:
        """Why engines cannot run on this machine, and what to do about it; empty if they can."""
        ...

    def cannot_build_reason(self) -> str:
        """Why engines cannot be built on this machine, and what to do about it; empty if they can."""
        ...

    def version(self) -> str: ...

    def build(self, graph: Graph, settings: Engine) -> BuiltEngine:
        """Builds an engine beside the graph's ONNX file.

        Raises:
            UserError: the backend refuses the graph.
        """
        ...

    def target(self) -> str:
        """The target for which engines must be built to run on this machine."""
        ...

    def target_of(self, settings: Engine) -> str:
        """What an engine of these settings is built for: GPU architectures such as 'sm80,sm89', or the CPU's name.

        Raises:
            UsageError: the backend does not build for the targets that are asked for.
            UserError: there is no GPU here, and none is named.
        """
        ...

    def incompatible_reason(self, info: BundleInfo) -> str:
        """Why this engine cannot run here, assuming that its backend can, as the end of a sentence; empty if it can."""
        ...

    def load(self, bundle: Bundle) -> Runner: ...


def refuse_targets(settings: Engine, why: str) -> None:
    """Raises UsageError if an engine recipe names GPU architectures, for a backend that cannot choose them."""
    if settings.targets:
        raise UsageError(f"--target {','.join(settings.targets)}: {why}; leave it out, or take --backend tensorrt-rtx")
