"""Builds a serialized TensorRT engine (a plan) from an ONNX file.

Networks are strongly typed: each layer runs in the precision that the graph gives it.
Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import BatchProfile, Engine
from ssv2rt.engines.backends.tensorrt.log import Log, parser_error_text
from ssv2rt.engines.backends.tensorrt.progress import compile_network
from ssv2rt.engines.export import INPUT

logger = logging.getLogger(__name__)


_MEMORY_ERROR = re.compile(r"memory|workspace|any implementation", re.IGNORECASE)
"""Matches errors that a larger workspace may fix."""


def build_plan(
    trt: Any,
    log: Log,
    onnx_file: Path,
    settings: Engine,
    *,
    targets: tuple[str, ...] = (),
    cache_file: Path | None = None,
) -> bytes:
    """Builds an engine.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        log: receives TensorRT's messages, including the list of the engine's layers.
        onnx_file: graph with the input uint8 `frames` (N, T, S, S, 3), with dynamic N.
        settings: batch range, workspace, optimization level and compatibility.
        targets: for TensorRT for RTX: GPU architectures such as sm89. Empty for the current GPU.
        cache_file: for TensorRT: the timing cache of earlier builds, which is updated. None for no cache.

    Returns:
        The serialized engine.

    Raises:
        UserError: the parser or the builder refuses the graph.
        KeyboardInterrupt: the build was interrupted.
    """
    builder = create_trt_object(trt.Builder, log)
    network, parser = _parse(trt, builder, log, onnx_file, settings)
    config = _configure(trt, builder, settings, targets)
    config.add_optimization_profile(_profile(builder, network, settings.batch))
    timings = TimingCache(config, cache_file) if cache_file else None
    log.clear_errors()
    plan = compile_network(trt, builder, network, config, _current_gpu_setter())
    del parser  # it owns the weights of the network, so it must live until here
    if plan is None:
        raise UserError(f"TensorRT could not build {onnx_file.name}: {log.reason}; {_suggestion(settings, log.errors)}")
    if timings:
        timings.save()
    return bytes(plan)


def create_trt_object(factory: Callable[[Any], Any], log: Log) -> Any:
    """Creates a builder or a runtime.

    Raises:
        UserError: TensorRT could not create it, usually because of the NVIDIA driver.
    """
    try:
        return factory(log.logger)
    except TypeError:  # raised by the Python bindings if the C++ factory returns null
        raise UserError(
            f"TensorRT does not start: {log.reason}; update the NVIDIA driver, or take --backend openvino"
        ) from None


class TimingCache:
    """TensorRT's timing cache in a file, which speeds up later builds. A damaged or foreign file is taken as empty."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        if not (content and self._attach(content)):
            self._attach(b"")

    def _attach(self, content: bytes) -> bool:
        self._cache = self._config.create_timing_cache(content)  # must live as long as the builder
        return self._cache is not None and bool(self._config.set_timing_cache(self._cache, False))

    def save(self) -> None:
        """Writes the cache for the next build. Failing to write it is only a warning."""
        cache = self._config.get_timing_cache()
        if cache is None:
            return
        remove_partial_files(self._path)
        try:
            with atomic_file(self._path) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))
        except OSError as error:
            logger.warning(
                f"cannot write the timing cache '{self._path}' ({error.strerror}); the next build will not be faster"
            )


def _parse(trt: Any, builder: Any, log: Log, onnx_file: Path, settings: Engine) -> tuple[Any, Any]:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log.logger)
    taken = parser.parse_from_file(str(onnx_file))
    if not taken or not network.num_inputs:
        why = parser_error_text(parser.get_error(0)) if parser.num_errors else "it has no inputs"
        raise UserError(f"TensorRT does not take {onnx_file.name}: {why}; {_suggestion(settings)}")
    return network, parser


def _configure(trt: Any, builder: Any, settings: Engine, targets: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * 2**30))
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine inspector lists precisions
    if settings.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # its 10-bit mantissa would be too inexact for fp32
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if targets:
        config.num_compute_capabilities = len(targets)
        for number, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)
    return config


def _profile(builder: Any, network: Any, batch: BatchProfile) -> Any:
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]  # T S S 3
    profile.set_shape(INPUT, (batch.min, *shape), (batch.best, *shape), (batch.max, *shape))
    return profile


def _current_gpu_setter() -> Callable[[], None]:
    """Returns a function that, in another thread, selects the GPU that is current in this thread."""
    if not torch.cuda.is_available():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _suggestion(settings: Engine, errors: tuple[str, ...] = ()) -> str:
    """What the user can try after a failed build."""
    if any(_MEMORY_ERROR.search(error) for error in errors):
        more = f"{2 * settings.workspace_gib:g}"
        return f"try --set engine.workspace_gib={more}, a smaller engine.batch.max, or --backend openvino"
    return "try --backend openvino" if settings.precision == "fp32" else "try --fp32, or --backend openvino"
