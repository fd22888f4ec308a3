"""TensorRT 10 and 11, and TensorRT for RTX: engines for NVIDIA GPUs, by one code path.

Networks are strongly typed: each layer runs in the precision that the graph gives it. The two packages differ in their
module's name, and in that TensorRT for RTX is told which GPUs to build for, and so builds where there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from ssv2rt.engines.backends import Built, Graph
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT, OUTPUT
from ssv2rt.errors import UserError
from ssv2rt.hardware import gpu_architecture
from ssv2rt.recipes import Engine

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")


class TensorRtBackend:
    """One of the two packages.

    Args:
        module: name of the Python module.
        extra: the extra of this package that installs it.
    """

    WANTS_HALF = True

    def __init__(self, module: str, extra: str) -> None:
        self._module, self._extra = module, extra

    @property
    def _rtx(self) -> bool:
        return self._module == "tensorrt_rtx"

    def missing(self) -> str:
        if reason := self.cannot_build():
            return reason
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch can use; take --backend openvino on a CPU"
        return ""

    def cannot_build(self) -> str:
        """Why engines cannot be built here; empty if they can."""
        if importlib.util.find_spec(self._module) is None:
            return f"{self._module} is not installed; install it with `pip install 'ssv2rt[{self._extra}]'`"
        try:
            self._trt()
        except (ImportError, OSError) as error:
            return f"{self._module} cannot be loaded ({str(error).splitlines()[0]})"
        if not self._rtx and not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch can use"
        return ""

    def version(self) -> str:
        return str(self._trt().__version__)

    def target(self) -> str:
        return gpu_architecture(torch.device("cuda", torch.cuda.current_device()))

    def build(self, graph: Graph, settings: Engine) -> Built:
        onnx_file = graph.onnx_file
        trt = self._trt()
        log = _Log(trt)
        builder = trt.Builder(log.logger)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, log.logger)
        if not parser.parse_from_file(str(onnx_file)):
            raise UserError(_parser_errors(parser, onnx_file))
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * 2**30))
        config.builder_optimization_level = settings.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        shape = tuple(network.get_input(0).shape)[1:]
        profile = builder.create_optimization_profile()
        batch = settings.batch
        profile.set_shape(INPUT, *((size, *shape) for size in (batch.min, batch.best, batch.max)))
        config.add_optimization_profile(profile)
        target = self._set_target(trt, config, settings)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise UserError(f"TensorRT could not build {onnx_file}: {log.last_error or 'it gave no reason'}")
        file = onnx_file.with_name("engine.plan")
        file.write_bytes(bytes(plan))
        return Built(file.name, target)

    def load(self, bundle: Bundle) -> TensorRtRunner:
        return TensorRtRunner(self._trt(), bundle)

    def _trt(self) -> Any:
        return importlib.import_module(self._module)

    def _set_target(self, trt: Any, config: Any, settings: Engine) -> str:
        if not self._rtx:
            return self.target()
        targets = settings.targets or ((self.target(),) if torch.cuda.is_available() else ())
        if not targets:
            raise UserError(f"no GPU here to build for; name one: --target {'|'.join(RTX_TARGETS)}")
        if wrong := [target for target in targets if target not in RTX_TARGETS]:
            raise UserError(f"TensorRT for RTX does not build for {wrong[0]}; it does for {', '.join(RTX_TARGETS)}")
        config.num_compute_capabilities = len(targets)
        for number, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)
        return ",".join(targets)


class TensorRtRunner:
    """A deserialised engine with its own stream and buffers."""

    def __init__(self, trt: Any, bundle: Bundle) -> None:
        self._log = _Log(trt)
        self._device = torch.device("cuda", torch.cuda.current_device())
        runtime = trt.Runtime(self._log.logger)
        self._engine = runtime.deserialize_cuda_engine(bundle.engine_file.read_bytes())
        if self._engine is None:
            raise UserError(
                f"{bundle.engine_file} cannot be loaded: {self._log.last_error}; rebuild it with `{bundle.info.rebuild}`"
            )
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream(self._device)
        largest, clip = bundle.info.batch.max, bundle.info.clip
        self._clips = torch.empty(
            (largest, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, device=self._device
        )
        self._logits = torch.empty((largest, len(bundle.info.labels)), device=self._device)
        self._context.set_tensor_address(INPUT, self._clips.data_ptr())
        self._context.set_tensor_address(OUTPUT, self._logits.data_ptr())

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        count = len(clips)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._clips[:count].copy_(clips, non_blocking=True)
            self._context.set_input_shape(INPUT, (count, *self._clips.shape[1:]))
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError(f"TensorRT failed on a batch of {count}: {self._log.last_error}")
            logits = self._logits[:count].to("cpu", non_blocking=True)
        self._stream.synchronize()
        return logits


class _Log:
    """Keeps what TensorRT says; its own logger would print it."""

    def __init__(self, trt: Any) -> None:
        errors: list[str] = []

        class Logger(trt.ILogger):
            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    errors.append(message)

        self.logger, self._errors = Logger(), errors

    @property
    def last_error(self) -> str:
        return self._errors[-1] if self._errors else ""


def _parser_errors(parser: Any, onnx_file: Path) -> str:
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    first = errors[0]
    where = first.node_name() if hasattr(first, "node_name") else f"node {first.node()}"
    return f"TensorRT does not take {onnx_file}: {where}: {first.desc()}"


TENSORRT = TensorRtBackend("tensorrt", "tensorrt")
RTX = TensorRtBackend("tensorrt_rtx", "rtx")
