"""The programs that run engines: what they have in common, and which of them this machine can use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn

from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.errors import UserError
from ssv2rt.recipes import Engine

NAMES = ("tensorrt", "tensorrt-rtx", "openvino", "aotinductor")


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

    def missing(self) -> str:
        """Why engines cannot be run here, and what to do; empty if they can."""
        ...

    def cannot_build(self) -> str:
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

    def misfit(self, info: BundleInfo) -> str:
        """Why an engine cannot be run here, although its backend can, as the end of a sentence; empty if it can."""
        ...

    def load(self, bundle: Bundle) -> Runner: ...


def backend(name: str) -> Backend:
    """The backend's module. Nothing heavy is imported before it is used.

    Raises:
        UserError: no such backend.
    """
    if name not in NAMES:
        raise UserError(f"no backend '{name}'; there are: {', '.join(NAMES)}")
    if name == "tensorrt-rtx":
        from ssv2rt.engines.tensorrt.backend import RTX

        return RTX
    if name == "tensorrt":
        from ssv2rt.engines.tensorrt.backend import TENSORRT

        return TENSORRT
    return cast(Backend, importlib.import_module(f"ssv2rt.engines.{name}"))


def choose_backend(precision: str = "fp16") -> str:
    """TensorRT, or TensorRT for RTX, where one and its GPU are present; on another GPU AOTInductor, which has no int8; else
    OpenVINO."""
    for name in ("tensorrt", "tensorrt-rtx"):
        if not backend(name).missing():
            return name
    if (
        torch.cuda.is_available()
        and precision in backend("aotinductor").PRECISIONS
        and not backend("aotinductor").cannot_build()
    ):
        return "aotinductor"
    return "openvino"


def load_runner(bundle: Bundle) -> Runner:
    """Loads a bundle's engine, if it fits this machine.

    Raises:
        UserError: it was built for another backend version or another GPU, or its backend is not here.
    """
    info = bundle.info
    program = backend(info.backend)
    if reason := program.missing():
        raise UserError(f"{bundle.path} needs {info.backend}: {reason}; it was built with `{info.rebuild}`")
    if reason := program.misfit(info):
        raise UserError(f"{bundle.path} {reason}; rebuild it with `{info.rebuild}`")
    return program.load(bundle)
