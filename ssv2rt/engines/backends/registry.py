"""The programs that run engines by name, and which of them this machine can use."""

from __future__ import annotations

import importlib
from typing import cast

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.engines.base import Backend, Runner
from ssv2rt.engines.bundle import Bundle

NAMES = ("tensorrt", "tensorrt-rtx", "openvino", "aotinductor")


def backend(name: str) -> Backend:
    """The backend's module. Nothing heavy is imported before it is used.

    Raises:
        UserError: no such backend.
    """
    if name not in NAMES:
        raise UserError(f"no backend '{name}'; there are: {', '.join(NAMES)}")
    if name == "tensorrt-rtx":
        from ssv2rt.engines.backends.tensorrt.backend import RTX

        return RTX
    if name == "tensorrt":
        from ssv2rt.engines.backends.tensorrt.backend import TENSORRT

        return TENSORRT
    return cast(Backend, importlib.import_module(f"ssv2rt.engines.backends.{name}"))


def choose_backend(precision: str = "fp16") -> str:
    """TensorRT, or TensorRT for RTX, where one and its GPU are present; on another GPU AOTInductor, which has no int8; else
    OpenVINO."""
    for name in ("tensorrt", "tensorrt-rtx"):
        if not backend(name).unavailable_reason():
            return name
    if (
        torch.cuda.is_available()
        and precision in backend("aotinductor").PRECISIONS
        and not backend("aotinductor").cannot_build_reason()
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
    if reason := program.unavailable_reason():
        raise UserError(f"{bundle.path} needs {info.backend}: {reason}; it was built with `{info.rebuild}`")
    if reason := program.incompatible_reason(info):
        raise UserError(f"{bundle.path} {reason}; rebuild it with `{info.rebuild}`")
    return program.load(bundle)
