"""Finds backends by name, chooses one for this machine, and loads engines."""

from __future__ import annotations

import importlib
from typing import cast

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.engines.base import Backend, Runner
from ssv2rt.engines.bundle import Bundle

NAMES = ("tensorrt", "tensorrt-rtx", "openvino", "aotinductor")


def backend(name: str) -> Backend:
    """The backend with this name. TensorRT and OpenVINO themselves are imported only when they are used.

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
    """The best backend on this machine.

    That is TensorRT, or TensorRT for RTX, if it is installed and there is a GPU for it; else AOTInductor if there is a GPU
    and it can build `precision`; else OpenVINO.
    """
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
    """Loads the engine of a bundle.

    Raises:
        UserError: the engine was built for another backend version or another machine, or its backend is not installed.
    """
    info = bundle.info
    engine_backend = backend(info.backend)
    if reason := engine_backend.unavailable_reason():
        raise UserError(f"{bundle.path} needs {info.backend}: {reason}; it was built with `{info.rebuild}`")
    if reason := engine_backend.incompatible_reason(info):
        raise UserError(f"{bundle.path} {reason}; rebuild it with `{info.rebuild}`")
    return engine_backend.load(bundle)
