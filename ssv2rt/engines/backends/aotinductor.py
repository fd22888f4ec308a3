"""AOTInductor backend: compiles the network ahead of time with PyTorch, for this machine's GPU, or for its CPU.

The engine file is one package of machine code and weights, which loads without the network's Python code and without a
compiler. Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import nn

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, cpu_name, gpu_architecture, native_bf16
from ssv2rt.core.recipes import Engine
from ssv2rt.engines.base import BuiltEngine, Graph, Outputs, Runner, refuse_targets
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.export import EngineModel

logger = logging.getLogger(__name__)


WANTS_HALF = False
RUNS_SHIFTS = False
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16")

_CUDNN_FLAGS = {"enabled": True, "benchmark": True, "deterministic": True, "allow_tf32": False}
"""cuDNN picks the fastest deterministic algorithm, and computes fp32 without TF32."""


def unavailable_reason() -> str:
    supported = hasattr(torch.cpu, "get_capabilities")
    return "" if supported else f"PyTorch {version()} is too old (2.13 is known to work); run `pip install -U torch`"


def cannot_build_reason() -> str:
    if reason := unavailable_reason():
        return reason
    from torch._inductor import config
    from torch.utils.cpp_extension import CUDA_HOME

    if not any(name and shutil.which(name) for name in config.cpp.cxx):
        return f"there is no C++ compiler '{config.cpp.cxx[-1]}'; run `apt-get install g++`, or name another one in CXX"
    if _device().type == "cuda" and not Path(CUDA_HOME or "", "include", "cuda_runtime_api.h").is_file():
        return f"there are no CUDA headers; install the CUDA {torch.version.cuda} toolkit, and set CUDA_HOME to it"
    return ""


def version() -> str:
    return str(torch.__version__)


def target_of(settings: Engine) -> str:
    """See `Backend.target_of`."""
    refuse_targets(settings, "AOTInductor builds for the machine that is here")
    return target()


def target() -> str:
    """The GPU's architecture, or the CPU's name and a hash of its instruction sets.

    The name alone is not enough: under a hypervisor, different CPUs may have the same name, and instruction sets that the
    compiler would use may be hidden.
    """
    if (device := _device()).type == "cuda":
        return gpu_architecture(device)
    sets = " ".join(sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True))
    return f"{cpu_name()} {torch.backends.cpu.get_cpu_capability()} {hashlib.sha256(sets.encode()).hexdigest()[:8]}"


def incompatible_reason(info: BundleInfo) -> str:
    if info.backend_version != version():
        return f"was built by PyTorch {info.backend_version}, and {version()} is installed"
    return "" if info.target == target() else f"was built for {info.target}, and this machine has {target()}"


def build(graph: Graph, settings: Engine) -> BuiltEngine:
    """Compiles the graph's network into `engine.pt2` beside the ONNX file, for batches of 1 to `settings.batch.max`.

    A CPU gains nothing from fp16. There, an fp16 engine computes in the faster of fp32 and, if the CPU supports it, bf16.
    `settings["arithmetic"]` of the result says which.

    Raises:
        UserError: the precision is int8, the network is only known as an ONNX graph, PyTorch cannot compile it, or the
            compiled code gives wrong results.
    """
    if settings.precision == "int8":
        raise UserError("engine.precision = 'int8': aotinductor takes fp32, bf16 and fp16; take openvino or tensorrt")
    if graph.model is None:
        raise UserError("aotinductor builds from runs, and not from ONNX files; take --backend openvino or tensorrt")
    device, model = _device(), cast(EngineModel, graph.model)
    choices: list[str] = [settings.precision]
    if settings.precision == "fp16" and device.type == "cpu":
        choices = ["bf16", "fp32"] if native_bf16(device) else ["fp32"]
    clip = [size.dim_value for size in onnx.load(graph.onnx_file).graph.input[0].type.tensor_type.shape.dim[1:]]
    facts = _package_metadata(clip, model.head.out_features, model.head.in_features, settings.batch.max)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    networks = {name: _CastModel(model, DTYPES[name]).to(device) for name in ("fp32", *choices)}
    file = graph.onnx_file.with_name("engine.pt2")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        packages = {name: Path(folder, f"{name}.pt2") for name in choices}
        try:
            for name, package in packages.items():
                logger.info(f"compiling for {target()} in {name}, which can take a minute")
                _compile(networks[name], package, clip, settings, facts)
            opened = {name: _load_package(package) for name, package in packages.items()}
            for count in sorted({1, settings.batch.best}):
                rates = _measure_and_check(opened, networks, _random_clips(count, clip).to(device))
        except (RuntimeError, OSError) as error:
            raise UserError(f"PyTorch cannot compile it ({_reason(error)}); take openvino or tensorrt") from error
        fastest = max(rates, key=lambda name: rates[name])
        os.replace(packages[fastest], file)
    kept = {"arithmetic": fastest, "threads": settings.threads, "clips_per_second": rates}
    return BuiltEngine(file.name, settings=kept)


class AotRunner(Runner):
    """A loaded package. On a CPU, PyTorch holds the GIL while the package runs, which blocks other Python threads."""

    def __init__(self, bundle: Bundle) -> None:
        info = bundle.info
        self._file, self._rebuild = bundle.engine_file, f"rebuild it with `{info.rebuild}`"
        self._shape, self._largest, self._embeds = info.input_shape[1:], info.batch.max, bool(info.embedding)
        try:
            self._package = _load_package(self._file)
            facts: dict[str, str] = self._package.get_metadata()
            torch.set_num_threads(int(info.settings.get("threads", 0)) or torch.get_num_threads())
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"PyTorch cannot load {self._file} ({_reason(error)}); {self._rebuild}") from None
        for name, value in _package_metadata(self._shape, len(info.labels), info.embedding, self._largest).items():
            if facts.get(name) != value:
                raise UserError(f"{self._file}: {name} {facts.get(name)}, but {value} in bundle.json; {self._rebuild}")
        self._device = _device() if facts["AOTI_DEVICE_KEY"] == "cuda" else torch.device("cpu")
        self.in_flight = 2 if self._device.type == "cuda" else 1

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        # The package does not check its input, and would read beyond the end of a smaller tensor.
        if clips.dtype != torch.uint8 or clips.shape[1:] != self._shape or not 1 <= len(clips) <= self._largest:
            raise UserError(
                f"clips of {clips.dtype} {tuple(clips.shape)}: {self._file} takes 1 to {self._largest} of torch.uint8 "
                f"{self._shape}; set engine.batch.max, and {self._rebuild}"
            )
        try:
            with torch.backends.cudnn.flags(**_CUDNN_FLAGS):
                found: list[torch.Tensor] = self._package.run([clips.to(self._device).contiguous()])
        except RuntimeError as error:
            raise UserError(f"{self._file} failed on {len(clips)} clips ({_reason(error)}); {self._rebuild}") from None
        # The copy to the CPU waits for the GPU.
        return lambda: Outputs(found[0].cpu(), found[1].cpu() if self._embeds else None)


def load(bundle: Bundle) -> AotRunner:
    return AotRunner(bundle)


class _CastModel(nn.Module):
    """A copy of a network that computes in `dtype`, with fp32 normalization and fp32 outputs, in channels-last."""

    def __init__(self, model: EngineModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalise, self.dtype = copy.deepcopy(model.normalise), dtype
        self.backbone, self.head = copy.deepcopy(model.backbone).to(dtype), copy.deepcopy(model.head).to(dtype)
        for weight in self.eval().requires_grad_(False).parameters():
            if weight.ndim in (4, 5):
                layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
                weight.data = weight.data.contiguous(memory_format=layout)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, T, S, S, 3) to logits, float32 (N, K), and the embedding, float32 (N, D)."""
        embedding = self.backbone(self.normalise(frames).to(self.dtype))
        return self.head(embedding).float(), embedding.float()


def _compile(model: nn.Module, file: Path, clip: Sequence[int], settings: Engine, facts: Mapping[str, str]) -> None:
    """Compiles a network into a package, without PyTorch's warnings, and with caches that are deleted afterwards."""
    from torch._inductor.utils import fresh_cache

    device, largest = next(model.parameters()).device, settings.batch.max
    example = _random_clips(min(largest, max(2, settings.batch.best)), clip).to(
        device
    )  # torch.export would specialize on a batch of 1
    batch = {0: torch.export.Dim("batch", min=1, max=largest)} if largest > 1 else None
    options: dict[str, Any] = {
        "aot_inductor.metadata": facts,
        "aot_inductor.precompile_headers": False,  # they would leave 280 MB in a shared folder
        "compile_threads": 1,  # no worker processes that survive an interrupted build
    }
    if device.type == "cpu":
        # With constant weights, oneDNN fuses the ReLU and the addition of the shortcut into the convolution.
        options |= {"freezing": True, "cpp.dynamic_threads": True}
    disabled, place = logging.root.manager.disable, os.environ.get("TMPDIR")
    logging.disable(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="ssv2rt-") as folder, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            os.environ["TMPDIR"] = folder  # the C++ compiler leaves its temporary files here if it is killed
            with fresh_cache(dir=folder):
                program = torch.export.export(model, (example,), dynamic_shapes=(batch,))
                torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    finally:
        os.environ.pop("TMPDIR", None)
        os.environ.update({} if place is None else {"TMPDIR": place})
        logging.disable(disabled)


@torch.no_grad()
def _measure_and_check(
    packages: Mapping[str, Any], networks: Mapping[str, nn.Module], clips: torch.Tensor
) -> dict[str, float]:
    """Clips per second of each package, measured in turns. Checks the outputs of each package against eager PyTorch.

    The check is needed because PyTorch may confuse the memory formats of a tensor and silently compute wrong values, as
    2.13 does on a CPU after a layer of one channel.

    Raises:
        UserError: a package differs from eager fp32 by more than its arithmetic explains.
    """
    rates = dict.fromkeys(packages, 0.0)
    with torch.backends.cudnn.flags(**_CUDNN_FLAGS):
        eager = {name: [part.cpu() for part in network(clips)] for name, network in networks.items()}
        for name, package in 4 * list(packages.items()):
            start = time.perf_counter()
            found = [part.cpu() for part in package.run([clips])]
            rates[name] = max(rates[name], round(len(clips) / (time.perf_counter() - start), 2))
            for ours, rounded, exact in zip(found, eager[name], eager["fp32"], strict=True):
                error, rounding = ((part - exact).norm() / exact.norm().clamp(min=1e-9) for part in (ours, rounded))
                if not error <= 1e-3 + 3 * rounding:
                    raise UserError(
                        f"what PyTorch compiled in {name} is wrong by {error:.1%} on {len(clips)} clips, and "
                        f"{rounding:.1%} is rounding; take another precision, or openvino or tensorrt"
                    )
    return rates


def _load_package(file: Path) -> Any:
    # `aoti_load_package` is not used because it runs the C++ compiler. -1 means the current GPU.
    return torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _random_clips(count: int, clip: Sequence[int]) -> torch.Tensor:
    return torch.randint(0, 256, (count, *clip), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _package_metadata(clip: Sequence[object], classes: int, features: int, largest: int) -> dict[str, str]:
    """The metadata of a package. Packages without an embedding output, from older versions, have no entry 'features'."""
    sizes = "x".join(str(size) for size in clip)
    facts = {"clips": sizes, "classes": str(classes), "largest batch": str(largest)}
    return facts | ({"features": str(features)} if features else {})


def _reason(error: BaseException) -> str:
    """One line of PyTorch's error message: the first error of the C++ compiler, or else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
