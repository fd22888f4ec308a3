"""AOTInductor: the network as PyTorch compiles it ahead of time, for the GPU that is here, or else for the CPU.

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
from ssv2rt.engines.base import Built, Graph, Outputs, Runner
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.export import EngineModel

logger = logging.getLogger(__name__)


WANTS_HALF = False
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16")

_ALGORITHMS = {"enabled": True, "benchmark": True, "deterministic": True, "allow_tf32": False}
"""cuDNN's fastest among those that give the same bits each time, and fp32 that is not TF32."""


def unavailable_reason() -> str:
    new = hasattr(torch.cpu, "get_capabilities")
    return "" if new else f"PyTorch {version()} is too old (2.13 is known to work); run `pip install -U torch`"


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


def target() -> str:
    """The GPU's architecture, or the CPU's name and a fingerprint of its instruction sets.

    A hypervisor may give several CPUs one name, and hide instructions that the compiler would use.
    """
    if (device := _device()).type == "cuda":
        return gpu_architecture(device)
    sets = " ".join(sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True))
    return f"{cpu_name()} {torch.backends.cpu.get_cpu_capability()} {hashlib.sha256(sets.encode()).hexdigest()[:8]}"


def incompatible_reason(info: BundleInfo) -> str:
    if info.backend_version != version():
        return f"was built by PyTorch {info.backend_version}, and {version()} is installed"
    return "" if info.target == target() else f"was built for {info.target}, and this machine has {target()}"


def build(graph: Graph, settings: Engine) -> Built:
    """Compiles the graph's network into `engine.pt2` beside the ONNX file, for batches of 1 to `settings.batch.max`.

    fp16 on a CPU, which gains nothing from it, becomes what is faster here of bf16, where the CPU has it, and fp32:
    `settings["arithmetic"]` of the result tells.

    Raises:
        UserError: the precision is int8, only the graph is known, or PyTorch cannot compile the network, or not rightly.
    """
    if settings.precision == "int8":
        raise UserError("engine.precision = 'int8': aotinductor takes fp32, bf16 and fp16; take openvino or tensorrt")
    if graph.model is None:
        raise UserError(f"aotinductor takes networks of this package, not {graph.onnx_file}; take openvino or tensorrt")
    device, model = _device(), cast(EngineModel, graph.model)
    choices: list[str] = [settings.precision]
    if settings.precision == "fp16" and device.type == "cpu":
        choices = ["bf16", "fp32"] if native_bf16(device) else ["fp32"]
    clip = [size.dim_value for size in onnx.load(graph.onnx_file).graph.input[0].type.tensor_type.shape.dim[1:]]
    facts = _facts(clip, model.head.out_features, model.head.in_features, settings.batch.max)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    networks = {name: _InPrecision(model, DTYPES[name]).to(device) for name in ("fp32", *choices)}
    file = graph.onnx_file.with_name("engine.pt2")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        packages = {name: Path(folder, f"{name}.pt2") for name in choices}
        try:
            for name, package in packages.items():
                logger.info(f"compiling for {target()} in {name}, which can take a minute")
                _compile(networks[name], package, clip, settings, facts)
            opened = {name: _open(package) for name, package in packages.items()}
            for count in sorted({1, settings.batch.best}):
                rates = _try(opened, networks, _noise(count, clip).to(device))
        except (RuntimeError, OSError) as error:
            raise UserError(f"PyTorch cannot compile it ({_reason(error)}); take openvino or tensorrt") from error
        fastest = max(rates, key=lambda name: rates[name])
        os.replace(packages[fastest], file)
    kept = {"arithmetic": fastest, "threads": settings.threads, "clips_per_second": rates}
    return Built(file.name, target(), settings=kept)


class AotRunner(Runner):
    """A loaded package. On a CPU, PyTorch holds Python's lock while it computes: other threads wait for the batch."""

    def __init__(self, bundle: Bundle) -> None:
        info = bundle.info
        self._file, self._rebuild = bundle.engine_file, f"rebuild it with `{info.rebuild}`"
        self._shape, self._largest, self._embeds = info.input_shape[1:], info.batch.max, bool(info.embedding)
        try:
            self._package = _open(self._file)
            facts: dict[str, str] = self._package.get_metadata()
            torch.set_num_threads(int(info.settings.get("threads", 0)) or torch.get_num_threads())
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"PyTorch cannot load {self._file} ({_reason(error)}); {self._rebuild}") from None
        for name, value in _facts(self._shape, len(info.labels), info.embedding, self._largest).items():
            if facts.get(name) != value:
                raise UserError(f"{self._file}: {name} {facts.get(name)}, but {value} in bundle.json; {self._rebuild}")
        self._device = _device() if facts["AOTI_DEVICE_KEY"] == "cuda" else torch.device("cpu")
        self.in_flight = 2 if self._device.type == "cuda" else 1

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        # The package does not look at what it is given, and would read past the end of anything smaller.
        if clips.dtype != torch.uint8 or clips.shape[1:] != self._shape or not 1 <= len(clips) <= self._largest:
            raise UserError(
                f"clips of {clips.dtype} {tuple(clips.shape)}: {self._file} takes 1 to {self._largest} of torch.uint8 "
                f"{self._shape}; set engine.batch.max, and {self._rebuild}"
            )
        try:
            with torch.backends.cudnn.flags(**_ALGORITHMS):
                found: list[torch.Tensor] = self._package.run([clips.to(self._device).contiguous()])
        except RuntimeError as error:
            raise UserError(f"{self._file} failed on {len(clips)} clips ({_reason(error)}); {self._rebuild}") from None
        # Bringing them to the CPU waits for the GPU.
        return lambda: Outputs(found[0].cpu(), found[1].cpu() if self._embeds else None)


def load(bundle: Bundle) -> AotRunner:
    return AotRunner(bundle)


class _InPrecision(nn.Module):
    """A copy of a network, of another arithmetic between fp32 pixels and fp32 results, in the layout that clips come in."""

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
    """Without what PyTorch tells its own developers, and with caches that are gone afterwards."""
    from torch._inductor.utils import fresh_cache

    device, largest = next(model.parameters()).device, settings.batch.max
    example = _noise(min(largest, max(2, settings.batch.best)), clip).to(device)  # 1 would be taken for a constant
    batch = {0: torch.export.Dim("batch", min=1, max=largest)} if largest > 1 else None
    options: dict[str, Any] = {
        "aot_inductor.metadata": facts,
        "aot_inductor.precompile_headers": False,  # 280 MB that would be kept in a folder which is not ours to clear
        "compile_threads": 1,  # no helpers that outlive an interrupted build
    }
    if device.type == "cpu":
        # Where weights are constants, oneDNN does ReLU and the shortcut's sum within the convolution.
        options |= {"freezing": True, "cpp.dynamic_threads": True}
    disabled, place = logging.root.manager.disable, os.environ.get("TMPDIR")
    logging.disable(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="ssv2rt-") as folder, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            os.environ["TMPDIR"] = folder  # for the C++ compiler, which clears nothing if it is killed
            with fresh_cache(dir=folder):
                program = torch.export.export(model, (example,), dynamic_shapes=(batch,))
                torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
    finally:
        os.environ.pop("TMPDIR", None)
        os.environ.update({} if place is None else {"TMPDIR": place})
        logging.disable(disabled)


@torch.no_grad()
def _try(packages: Mapping[str, Any], networks: Mapping[str, nn.Module], clips: torch.Tensor) -> dict[str, float]:
    """Clips per second of packages that take turns. One further from fp32 than its arithmetic explains is refused.

    PyTorch may take one layout of a tensor for another, and compute nonsense: 2.13 on a CPU, behind a one-channel layer.
    """
    rates = dict.fromkeys(packages, 0.0)
    with torch.backends.cudnn.flags(**_ALGORITHMS):
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


def _open(file: Path) -> Any:
    # Not by `aoti_load_package`, which looks for a C++ compiler and tries it. -1: the GPU that is current.
    return torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _noise(count: int, clip: Sequence[int]) -> torch.Tensor:
    return torch.randint(0, 256, (count, *clip), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _facts(clip: Sequence[object], classes: int, features: int, largest: int) -> dict[str, str]:
    """What a package says of itself. One of earlier times gives no features, and says nothing of them."""
    sizes = "x".join(str(size) for size in clip)
    facts = {"clips": sizes, "classes": str(classes), "largest batch": str(largest)}
    return facts | ({"features": str(features)} if features else {})


def _reason(error: BaseException) -> str:
    """One line of PyTorch's many: the C++ compiler's first error, or else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
