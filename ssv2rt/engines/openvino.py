"""OpenVINO: engines for CPUs.

The engine file is OpenVINO's own form of the graph, which fits every CPU. The arithmetic of what is not int8 is a hint
to the plugin, and which one is fastest depends on the network and the CPU: it is measured when the engine is built.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ssv2rt.engines.backends import Built, Graph
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT
from ssv2rt.errors import UserError
from ssv2rt.hardware import cpu_name
from ssv2rt.recipes import Engine

WANTS_HALF = False

_CAPABILITY = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
_ALLOWED = {"fp32": ("f32",), "fp16": ("f16", "bf16", "f32"), "int8": ("f32", "f16", "bf16")}
"""Arithmetic that an engine of a precision may use where the graph says float."""


def missing() -> str:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"openvino cannot be imported ({error}); install it with `pip install openvino`"
    return ""


def cannot_build() -> str:
    return missing()


def version() -> str:
    import openvino

    return str(openvino.__version__).partition("-")[0]


def target() -> str:
    return cpu_name()


def build(graph: Graph, settings: Engine) -> Built:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(graph.onnx_file)
    file = graph.onnx_file.with_name("engine.xml")
    ov.save_model(model, file, compress_to_fp16=False)  # the graph's precision is already what was asked for
    native = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    choices = [name for name in _ALLOWED[settings.precision] if _CAPABILITY[name] in native]
    timing = {name: _seconds(core, model, name, settings.batch.best) for name in choices} if len(choices) > 1 else {}
    fastest = min(timing, key=lambda name: timing[name]) if timing else choices[0]
    rates = {name: round(settings.batch.best / seconds, 2) for name, seconds in timing.items()}
    return Built(file.name, target(), ("engine.bin",), {"arithmetic": fastest, "clips_per_second": rates})


class OpenVinoRunner:
    """A compiled engine. Several batches can be in flight: see `start`."""

    def __init__(self, bundle: Bundle) -> None:
        import openvino as ov

        info = bundle.info
        arithmetic = info.settings.get("arithmetic", "f32")
        if arithmetic not in _CAPABILITY:
            raise UserError(
                f"{bundle.path}: arithmetic '{arithmetic}' is none of OpenVINO's; rebuild it with `{info.rebuild}`"
            )
        core = ov.Core()
        try:
            model = core.read_model(bundle.engine_file)
            self._compiled = _compile(core, model, arithmetic)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
            raise UserError(
                f"OpenVINO cannot load {bundle.engine_file} ({reason}); rebuild it with `{info.rebuild}`"
            ) from None
        takes = [str(size) for size in list(model.input(0).partial_shape)[1:]]
        gives = str(model.output(0).partial_shape[1])
        if takes != [str(size) for size in info.input_shape[1:]] or gives != str(len(info.labels)):
            raise UserError(
                f"{bundle.engine_file} takes {'x'.join(takes)} and gives {gives} classes, which is not what bundle.json says; "
                f"rebuild it with `{info.rebuild}`"
            )
        self._request = self._compiled.create_infer_request()

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        result = self._request.infer({INPUT: clips.numpy()}, share_inputs=True)
        return torch.from_numpy(np.array(result[0], np.float32))


def load(bundle: Bundle) -> OpenVinoRunner:
    return OpenVinoRunner(bundle)


def _compile(core: Any, model: Any, arithmetic: str) -> Any:
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": arithmetic, "PERFORMANCE_HINT": "LATENCY"})


def _seconds(core: Any, model: Any, arithmetic: str, batch: int) -> float:
    """The shortest of three runs of a batch."""
    shape = [batch, *list(model.input(0).partial_shape)[1:]]
    clips = np.random.default_rng(0).integers(0, 256, [int(str(size)) for size in shape], np.uint8)
    request = _compile(core, model, arithmetic).create_infer_request()
    runs = []
    for _ in range(4):
        start = time.perf_counter()
        request.infer({INPUT: clips}, share_inputs=True)
        runs.append(time.perf_counter() - start)
    return min(runs[1:])
