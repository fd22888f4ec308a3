"""From an ONNX file to a serialised TensorRT engine.

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
from ssv2rt.engines.backends.tensorrt.log import Log, node_in
from ssv2rt.engines.backends.tensorrt.progress import compile_network
from ssv2rt.engines.export import INPUT

logger = logging.getLogger(__name__)


_MEMORY = re.compile(r"memory|workspace|any implementation", re.IGNORECASE)
"""Errors for which a larger workspace may be the cure."""


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
        log: takes what it says, the list of layers among it.
        onnx_file: uint8 `frames` (N, T, S, S, 3) with a dynamic N.
        settings: batch range, workspace, effort and compatibility.
        targets: TensorRT for RTX: GPU architectures such as sm89. Empty for the one that is here.
        cache_file: TensorRT: how fast kernels were on this GPU, from earlier builds; written anew. None for no cache.

    Returns:
        The serialised engine.

    Raises:
        UserError: the parser or the builder refuses the graph.
        KeyboardInterrupt: the build was interrupted.
    """
    builder = started(trt.Builder, log)
    network, parser = _parse(trt, builder, log, onnx_file, settings)
    config = _configure(trt, builder, settings, targets)
    config.add_optimization_profile(_profile(builder, network, settings.batch))
    timings = TimingCache(config, cache_file) if cache_file else None
    log.forget()
    plan = compile_network(trt, builder, network, config, _on_this_gpu())
    del parser  # weights of the network lie in it until here
    if plan is None:
        raise UserError(f"TensorRT could not build {onnx_file.name}: {log.reason}; {_way_out(settings, log.errors)}")
    if timings:
        timings.save()
    return bytes(plan)


def started(factory: Callable[[Any], Any], log: Log) -> Any:
    """A builder or a runtime.

    Raises:
        UserError: it does not start, which tells of the driver.
    """
    try:
        return factory(log.logger)
    except TypeError:  # how the bindings say that there is no object
        raise UserError(
            f"TensorRT does not start: {log.reason}; update the NVIDIA driver, or take --backend openvino"
        ) from None


class TimingCache:
    """How fast kernels were, kept from build to build. A damaged file, or one of another GPU, counts as empty."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        if not (content and self._attach(content)):
            self._attach(b"")

    def _attach(self, content: bytes) -> bool:
        self._cache = self._config.create_timing_cache(content)  # the builder needs it to its end
        return self._cache is not None and bool(self._config.set_timing_cache(self._cache, False))

    def save(self) -> None:
        """Writes it for the next build. Not being able to costs that build time, and this one nothing."""
        cache = self._config.get_timing_cache()
        if cache is None:
            return
        remove_partial_files(self._path)
        try:
            with atomic_file(self._path) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))
        except OSError as error:
            logger.warning(
                f"cannot write the timing cache '{self._path}' ({error.strerror}); the next build takes as long"
            )


def _parse(trt: Any, builder: Any, log: Log, onnx_file: Path, settings: Engine) -> tuple[Any, Any]:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log.logger)
    taken = parser.parse_from_file(str(onnx_file))
    if not taken or not network.num_inputs:
        why = node_in(parser.get_error(0)) if parser.num_errors else "it has no inputs"
        raise UserError(f"TensorRT does not take {onnx_file.name}: {why}; {_way_out(settings)}")
    return network, parser


def _configure(trt: Any, builder: Any, settings: Engine, targets: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * 2**30))
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine tells what it is made of
    if settings.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # products of 10 bits would be no reference
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


def _on_this_gpu() -> Callable[[], None]:
    """Gives another thread the GPU of this one."""
    if not torch.cuda.is_available():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _way_out(settings: Engine, errors: tuple[str, ...] = ()) -> str:
    """What to try after a failure."""
    if any(_MEMORY.search(error) for error in errors):
        more = f"{2 * settings.workspace_gib:g}"
        return f"try --set engine.workspace_gib={more}, a smaller engine.batch.max, or --backend openvino"
    return "try --backend openvino" if settings.precision == "fp32" else "try --fp32, or --backend openvino"
