"""OpenVINO backend: engines for CPUs.

The engine file is OpenVINO IR, which runs on every CPU. The precision of all that is not int8 is a hint to the CPU plugin.
Which hint is fastest depends on the network and the CPU, so it is measured when the engine is built.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ssv2rt.core.errors import MORE_MEMORY, UserError, says_out_of_memory
from ssv2rt.core.hardware import cpu_name
from ssv2rt.core.recipes import Engine
from ssv2rt.core.run_folders import optional_cache
from ssv2rt.engines.base import BuiltEngine, Graph, Outputs, Runner, refuse_targets
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.concatenations import protect_concatenations
from ssv2rt.engines.export import EMBEDDING, INPUT, OUTPUT

WANTS_HALF = False
RUNS_SHIFTS = True
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8")

_CAPABILITY = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
_ALLOWED_ARITHMETIC = {
    "fp32": ("f32",),
    "bf16": ("bf16", "f32"),
    "fp16": ("f16", "bf16", "f32"),
    "int8": ("f32", "f16", "bf16"),
}
"""For each engine precision: the arithmetic that may be used for the floating-point part of the graph."""
_HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
_ROUNDS = 3


def unavailable_reason() -> str:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"openvino cannot be imported ({error}); install it with `pip install openvino`"
    return ""


def cannot_build_reason() -> str:
    return unavailable_reason()


def version() -> str:
    import openvino

    return str(openvino.__version__).partition("-")[0]


def target_of(settings: Engine) -> str:
    """See `Backend.target_of`."""
    refuse_targets(settings, "OpenVINO builds for CPUs")
    return target()


def target() -> str:
    return cpu_name()


def incompatible_reason(info: BundleInfo) -> str:
    return ""  # OpenVINO IR runs in every version and on every CPU


def build(graph: Graph, settings: Engine) -> BuiltEngine:
    core = _core()
    native = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    choices = [name for name in _ALLOWED_ARITHMETIC[settings.precision] if _CAPABILITY[name] in native]
    file = graph.onnx_file.with_name("engine.xml")
    try:
        model = core.read_model(_mended(graph.onnx_file) if settings.precision == "int8" else graph.onnx_file)
        _save(model, file)
        rates = _measure_rates(core, model, choices, settings) if len(choices) > 1 else {}
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.startswith("Exception from")), "it gave no reason")
        raise UserError(f"OpenVINO does not take this network: {reason}; try another --backend, or --fp32") from None
    fastest = max(choices, key=lambda name: rates.get(name, 0.0))
    kept: dict[str, Any] = {
        "arithmetic": fastest,
        "hint": settings.hint,
        "threads": settings.threads,
        "clips_per_second": {name: round(rate, 2) for name, rate in rates.items()},
    }
    return BuiltEngine(file.name, ("engine.bin",), kept)


class OpenVinoRunner(Runner):
    """A compiled engine."""

    def __init__(self, bundle: Bundle) -> None:
        info = bundle.info
        arithmetic = info.settings.get("arithmetic", "f32")
        if arithmetic not in _CAPABILITY:
            raise UserError(
                f"{bundle.path}: arithmetic '{arithmetic}' is none of OpenVINO's; rebuild it with `{info.rebuild}`"
            )
        config = _config(arithmetic, info.settings)
        if cache := optional_cache("openvino", "engines start slower"):
            config["CACHE_DIR"] = str(cache)  # OpenVINO keeps the compiled model here for the next start
        try:
            model = _core().read_model(bundle.engine_file)
            self._compiled = _core().compile_model(model, "CPU", config)
        except RuntimeError as error:
            if says_out_of_memory(error):
                raise UserError(f"no memory for OpenVINO to load {bundle.engine_file}; {MORE_MEMORY}") from None
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(
                f"OpenVINO cannot load {bundle.engine_file} ({reason}); rebuild it with `{info.rebuild}`"
            ) from None
        takes = [str(size) for size in list(model.input(0).partial_shape)[1:]]
        gives = {output.any_name: str(output.partial_shape[1]) for output in model.outputs}
        wanted = {OUTPUT: str(len(info.labels))} | ({EMBEDDING: str(info.embedding)} if info.embedding else {})
        if takes != [str(size) for size in info.input_shape[1:]] or gives != wanted:
            raise UserError(
                f"{bundle.engine_file} takes {'x'.join(takes)} and gives {gives.get(OUTPUT)} classes and "
                f"{gives.get(EMBEDDING, 'no')} features, which is not what bundle.json says; rebuild it with `{info.rebuild}`"
            )
        self._names = tuple(wanted)
        # One more than run in parallel, so that the next batch is already queued in the plugin.
        self.in_flight = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1
        self._free = deque(self._compiled.create_infer_request() for _ in range(self.in_flight))
        self._running: deque[_PendingBatch] = deque()

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        if not self._free:
            self._running[0]()
        pending = _PendingBatch(self._free.popleft(), clips, self._names, self._done)
        self._running.append(pending)
        return pending

    def _done(self, pending: _PendingBatch) -> None:
        self._running.remove(pending)
        self._free.append(pending.request)


class _PendingBatch:
    """A batch in flight. Calling it waits for the batch and returns its outputs."""

    def __init__(
        self, request: Any, clips: torch.Tensor, names: tuple[str, ...], done: Callable[[_PendingBatch], None]
    ) -> None:
        self.request, self._names, self._done = request, names, done
        self._clips: np.ndarray | None = clips.contiguous().numpy()  # the plugin reads it in place
        self._outputs: Outputs | None = None
        request.start_async({INPUT: self._clips}, share_inputs=True)

    def __call__(self) -> Outputs:
        if self._outputs is None:
            self.request.wait()
            parts = [torch.from_numpy(np.array(self.request.get_tensor(n).data, np.float32)) for n in self._names]
            self._outputs = Outputs(parts[0], parts[1] if len(parts) > 1 else None)
            self._clips = None
            self._done(self)
        return self._outputs


def call_openvino_directly(bundle: Bundle, clips: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Returns a function that runs the engine with plain OpenVINO calls, to measure the overhead of `OpenVinoRunner`."""
    core = _core()
    config = _config(str(bundle.info.settings["arithmetic"]), bundle.info.settings)
    request = core.compile_model(core.read_model(bundle.engine_file), "CPU", config).create_infer_request()
    array = clips.numpy()
    return lambda: torch.from_numpy(request.infer({INPUT: array}, share_inputs=True)[0])


def load(bundle: Bundle) -> OpenVinoRunner:
    return OpenVinoRunner(bundle)


@functools.cache
def _core() -> Any:
    """The OpenVINO core of this process, of which there must be only one.

    Each core installs an alternate signal stack, and restores the previous one when it is destroyed. If two cores are
    destroyed in the order of their creation, the second restores a stack that is already freed, and the next Ctrl-C crashes.
    """
    import openvino as ov

    return ov.Core()


def _mended(file: Path) -> bytes:
    """A quantized graph in which nothing is that OpenVINO computes wrong."""
    return protect_concatenations(onnx.load(file)).SerializeToString()


def _save(model: Any, file: Path) -> None:
    import openvino as ov

    try:
        ov.save_model(model, file, compress_to_fp16=False)  # the graph already has the requested precision
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot write {file.name} ({error}); make room, or take another folder") from None


def _config(arithmetic: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "PERFORMANCE_HINT": _HINTS.get(str(settings.get("hint")), "LATENCY"),
    }
    threads = settings.get("threads")
    return config | ({"INFERENCE_NUM_THREADS": int(threads)} if threads else {})


def _measure_rates(core: Any, model: Any, choices: Sequence[str], settings: Engine) -> dict[str, float]:
    """Clips per second of a model in each arithmetic: the best of several rounds in which they take turns."""
    batch = settings.batch.best
    ours = {"hint": settings.hint, "threads": settings.threads}
    requests = {name: core.compile_model(model, "CPU", _config(name, ours)).create_infer_request() for name in choices}
    shape = [batch, *(int(str(size)) for size in list(model.input(0).partial_shape)[1:])]
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    best = dict.fromkeys(requests, 0.0)
    for number in range(_ROUNDS + 1):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer({INPUT: clips}, share_inputs=True)
            if number:  # round 0 is a warm-up
                best[name] = max(best[name], batch / (time.perf_counter() - start))
    return best
