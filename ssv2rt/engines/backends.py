"""The programs that run engines: what they have in common, and which of them this machine can use."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from ssv2rt.engines.bundle import Bundle
from ssv2rt.errors import UserError
from ssv2rt.recipes import Engine

NAMES = ("tensorrt", "tensorrt-rtx", "openvino")


@dataclass(frozen=True)
class Graph:
    """What an engine is made of."""

    onnx_file: Path
    """In the precision that is wanted."""
    model: nn.Module | None
    """The same network in PyTorch, fp32: uint8 (N, T, S, S, 3) to float32 (N, K). None where only the file is known."""


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


class Runner(Protocol):
    """A loaded engine."""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 clips (N, T, S, S, 3), N within the engine's batch range, to float32 logits (N, K) on the CPU."""
        ...


class Backend(Protocol):
    """A module of this package that builds and runs engines of one kind."""

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

    def load(self, bundle: Bundle) -> Runner: ...


def backend(name: str) -> Backend:
    """The backend's module. Nothing heavy is imported before it is used.

    Raises:
        UserError: no such backend.
    """
    if name not in NAMES:
        raise UserError(f"no backend '{name}'; there are: {', '.join(NAMES)}")
    if name == "tensorrt-rtx":
        from ssv2rt.engines.tensorrt import RTX

        return RTX
    if name == "tensorrt":
        from ssv2rt.engines.tensorrt import TENSORRT

        return TENSORRT
    return cast(Backend, importlib.import_module("ssv2rt.engines.openvino"))


def choose_backend() -> str:
    """TensorRT where it and a GPU are present, else OpenVINO."""
    return "openvino" if backend("tensorrt").missing() else "tensorrt"


def load_runner(bundle: Bundle) -> Runner:
    """Loads a bundle's engine, if it fits this machine.

    Raises:
        UserError: it was built for another backend version or another GPU, or its backend is not here.
    """
    info = bundle.info
    program = backend(info.backend)
    if reason := program.missing():
        raise UserError(f"{bundle.path} needs {info.backend}: {reason}")
    if program.version() != info.backend_version and info.backend != "openvino":
        raise UserError(
            f"{bundle.path} was built by {info.backend} {info.backend_version}, and {program.version()} is installed; "
            f"rebuild it with `{info.rebuild}`"
        )
    if program.target() != info.target and info.backend != "openvino":
        raise UserError(
            f"{bundle.path} was built for {info.target}, and this machine has {program.target()}; "
            f"rebuild it with `{info.rebuild}`"
        )
    return program.load(bundle)
