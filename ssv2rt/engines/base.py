"""What the programs that run engines have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ssv2rt.core.recipes import Engine
from ssv2rt.engines.bundle import Bundle, BundleInfo


@dataclass(frozen=True)
class Graph:
    """What an engine is made of."""

    onnx_file: Path
    """In the precision that is wanted."""
    model: nn.Module | None
    """The same network in PyTorch, fp32: uint8 (N, T, S, S, 3) to float32 logits (N, K) and embedding (N, D). None where
    only the file is known."""


@dataclass(frozen=True)
class Built:
    """What a backend made of a graph."""

    file: str
    """Name of the engine file, in the folder of the graph."""
    target: str
    """What it was built for."""
    more_files: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """What the backend needs to know to run it in the same way again."""


class Outputs(NamedTuple):
    """What an engine gives for N clips."""

    logits: torch.Tensor
    """float32 (N, K), on the CPU."""
    embedding: torch.Tensor | None
    """What the classifier sees: float32 (N, D), on the CPU. None where the engine does not give it."""


class Runner:
    """A loaded engine."""

    in_flight = 1
    """Batches that are worth starting before the first is waited for."""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 clips (N, T, S, S, 3), N within the engine's batch range, to float32 logits (N, K) on the CPU."""
        return self.start(clips)().logits

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        """As a call, without waiting where the backend computes by itself: what is returned waits, and gives all there is."""
        raise NotImplementedError


class Backend(Protocol):
    """A module of this package that builds and runs engines of one kind."""

    PRECISIONS: tuple[str, ...]
    """Of engines that it builds."""
    WANTS_HALF: bool
    """Whether int8 graphs should be fp16 where they are not int8."""

    def unavailable_reason(self) -> str:
        """Why engines cannot be run here, and what to do; empty if they can."""
        ...

    def cannot_build_reason(self) -> str:
        """Why engines cannot be built here, and what to do; empty if they can."""
        ...

    def version(self) -> str: ...

    def build(self, graph: Graph, settings: Engine) -> Built:
        """Builds an engine beside the graph's ONNX file.

        Raises:
            UserError: the backend refuses the graph.
        """
        ...

    def target(self) -> str:
        """What an engine must have been built for to run here."""
        ...

    def incompatible_reason(self, info: BundleInfo) -> str:
        """Why an engine cannot be run here, although its backend can, as the end of a sentence; empty if it can."""
        ...

    def load(self, bundle: Bundle) -> Runner: ...
