"""TensorRT backends: TensorRT 10 and 11, and TensorRT for RTX, build engines for NVIDIA GPUs with the same code.

TensorRT for RTX differs in three ways: it is told which GPU architectures to build for, it can build without a GPU, and it
compiles its kernels when an engine is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from typing import TYPE_CHECKING, Any

import torch

from ssv2rt.core.errors import UsageError, UserError, one_line
from ssv2rt.core.hardware import gpu_architecture
from ssv2rt.core.recipes import Engine
from ssv2rt.engines.backends.tensorrt.build import build_plan, create_trt_object
from ssv2rt.engines.backends.tensorrt.layers import Layer, convolution_counts, inspect, layers_in_log, write_layers
from ssv2rt.engines.backends.tensorrt.log import Log
from ssv2rt.engines.base import BuiltEngine, Graph
from ssv2rt.engines.bundle import Bundle, BundleInfo

if TYPE_CHECKING:
    from ssv2rt.engines.backends.tensorrt.runner import TensorRtRunner

logger = logging.getLogger(__name__)


AMPERE_PLUS = "sm80+"
"""Target of hardware-compatible engines, which run on Ampere and all newer GPUs."""


class TensorRtBackend:
    """The backend for one of the two Python packages, TensorRT or TensorRT for RTX.

    Args:
        module: name of the Python module.
        extra: the extra of ssv2rt that installs it.
    """

    WANTS_HALF = True
    RUNS_SHIFTS = False  # not measured yet
    PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8", "fp8")

    def __init__(self, module: str, extra: str) -> None:
        self._module, self._extra = module, extra

    @property
    def _rtx(self) -> bool:
        return self._module == "tensorrt_rtx"

    def unavailable_reason(self) -> str:
        """Why engines cannot run on this machine; empty if they can."""
        if reason := self.cannot_build_reason():
            return reason
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch can use; take --backend openvino on a CPU"
        if self._rtx and self.target() not in (known := self._rtx_targets()):
            return (
                f"TensorRT for RTX does not run on {self.target()}, but on {', '.join(known)}; take --backend tensorrt"
            )
        return ""

    def cannot_build_reason(self) -> str:
        """Why engines cannot be built on this machine; empty if they can."""
        if importlib.util.find_spec(self._module) is None:
            return f"{self._module} is not installed; install it with `pip install 'ssv2rt[{self._extra}]'`"
        try:
            self._trt()
        except (ImportError, OSError) as error:
            return f"{self._module} cannot be loaded ({one_line(error)})"
        if not self._rtx and not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch can use; take --backend openvino on a CPU"
        return ""

    def version(self) -> str:
        return str(self._trt().__version__)

    def target(self) -> str:
        """The architecture of the current GPU, such as sm90."""
        return gpu_architecture(torch.device("cuda", torch.cuda.current_device()))

    def target_of(self, settings: Engine) -> str:
        """See `Backend.target_of`."""
        return ",".join(self._targets(settings)) or (AMPERE_PLUS if settings.hardware_compatible else self.target())

    def incompatible_reason(self, info: BundleInfo) -> str:
        """Why an engine does not run on this machine, assuming that TensorRT and a GPU are present; empty if it runs.

        An engine needs the version that built it, or a later one if it is `version_compatible`, and one of the GPU
        architectures that it was built for.
        """
        here = self.version()
        if info.settings.get("version_compatible"):
            if _version_numbers(here) < _version_numbers(info.backend_version):
                return f"was built by {info.backend} {info.backend_version}, and {here} is older"
        elif here != info.backend_version:
            return f"was built by {info.backend} {info.backend_version}, and {here} is installed"
        if not target_includes(info.target, self.target()):
            return f"was built for {info.target}, and this machine has {self.target()}"
        return ""

    def build(self, graph: Graph, settings: Engine) -> BuiltEngine:
        """Builds `engine.plan` and, if TensorRT lists the engine's layers, `layers.json` beside the graph.

        `BuiltEngine.settings` has the settings for the runtime (`cuda_graph`, `version_compatible`) and, in `layers`, the
        number of convolutions by precision.

        Raises:
            UserError: TensorRT refuses the graph, or the GPU is too old for `hardware_compatible`.
            UsageError: a setting that this backend does not support.
            KeyboardInterrupt: the build was interrupted.
        """
        trt, log, folder = self._trt(), Log(self._trt()), graph.onnx_file.parent
        targets = self._targets(settings)
        # The timing cache is kept beside the run's bundles, because the folder of the graph is temporary.
        cache = f"timing-{self._module}-{self.version()}-{self.target()}.cache" if not self._rtx else ""
        plan = build_plan(
            trt,
            log,
            graph.onnx_file,
            settings,
            targets=targets,
            cache_file=folder.parent / cache if cache else None,
        )
        file = folder / "engine.plan"
        file.write_bytes(plan)
        layers, source = self._layers(trt, log, plan, settings.version_compatible)
        more = (write_layers(folder, layers, source),) if layers else ()
        kept: dict[str, Any] = {
            "cuda_graph": settings.cuda_graph,
            "version_compatible": settings.version_compatible,
        }
        target = self.target_of(settings)
        if counts := convolution_counts(layers):
            kept["layers"] = counts
            wanted = settings.precision.upper()
            if wanted in ("INT8", "FP8") and wanted not in counts["convolutions"]:
                # TensorRT for RTX silently falls back if one of several targets is sm75.
                found = ", ".join(f"{count} in {kind}" for kind, count in counts["convolutions"].items())
                logger.info(
                    f"no convolution of this {settings.precision} engine runs in {wanted} on {target} ({found}); "
                    f"take --fp16, or GPUs since {'sm80' if wanted == 'INT8' else 'sm89'}"
                )
        return BuiltEngine(file.name, more, kept)

    def load(self, bundle: Bundle) -> TensorRtRunner:
        from ssv2rt.engines.backends.tensorrt.runner import TensorRtRunner

        return TensorRtRunner(self._trt(), bundle)

    def _trt(self) -> Any:
        return importlib.import_module(self._module)

    def _targets(self, settings: Engine) -> tuple[str, ...]:
        """Architectures to pass to the builder; empty for TensorRT, which builds for the current GPU."""
        targets = settings.targets
        if not self._rtx:
            if targets and targets != (self.target(),):
                raise UsageError(
                    f"--target {','.join(targets)}: TensorRT builds for the GPU that is here ({self.target()}); "
                    "leave it out, or take --backend tensorrt-rtx"
                )
            if settings.hardware_compatible and not target_includes(AMPERE_PLUS, self.target()):
                raise UserError(
                    f"engine.hardware_compatible = true needs a GPU since sm80, and this is {self.target()}; leave it out"
                )
            return ()
        for name in ("version_compatible", "hardware_compatible"):
            if getattr(settings, name):
                raise UsageError(
                    f"engine.{name} = true: TensorRT for RTX has no such engines; leave it out, and name GPUs with --target"
                )
        known = self._rtx_targets()
        targets = targets or ((self.target(),) if torch.cuda.is_available() else ())
        if not targets:
            raise UserError(f"no GPU here to build for; name one: --target {'|'.join(known)}")
        if wrong := [target for target in targets if target not in known]:
            raise UserError(f"TensorRT for RTX does not build for {wrong[0]}; it does for {', '.join(known)}")
        return targets

    def _rtx_targets(self) -> list[str]:
        """The GPU architectures that TensorRT for RTX builds for."""
        known = [name.lower() for name in self._trt().ComputeCapability.__members__ if name.startswith("SM")]
        return sorted(known, key=lambda name: int(name.removeprefix("sm")))

    def _layers(self, trt: Any, log: Log, plan: bytes, host_code: bool) -> tuple[list[Layer], str]:
        """The layers of an engine, and their source: the engine inspector, or the builder's log if there is no GPU."""
        layers: list[Layer] = []
        if torch.cuda.is_available():
            runtime = create_trt_object(trt.Runtime, log)
            runtime.engine_host_code_allowed = host_code
            engine = runtime.deserialize_cuda_engine(plan)  # None if an RTX engine is for another GPU
            layers = inspect(trt, engine) if engine is not None else []
        if convolution_counts(layers):
            return layers, "engine inspector"
        return layers_in_log(log.layers), "builder"


def target_includes(target: str, here: str) -> bool:
    """Whether a GPU architecture is among those that an engine was built for.

    Args:
        target: target of the engine: one architecture such as 'sm90', several as in 'sm80,sm89', or a minimum as in 'sm80+'.
        here: architecture of the GPU, such as 'sm90'.
    """
    least = (re.fullmatch(r"sm(\d{1,4})\+", name) for name in target.split(","))
    return here in target.split(",") or any(int(here.removeprefix("sm")) >= int(found[1]) for found in least if found)


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version))


TENSORRT = TensorRtBackend("tensorrt", "tensorrt")
RTX = TensorRtBackend("tensorrt_rtx", "rtx")
