"""What is here: GPU, driver, libraries and packages, and the most that the GPU gives in arithmetic and in bandwidth."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tomllib
from pathlib import Path

from gpu_check.record import Missing, Record, steps

PACKAGES = (
    *("torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "numpy", "pyarrow", "pydantic"),
    *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "openvino", "onnxruntime", "onnxruntime-gpu"),
    *("onnx", "onnxscript", "ml_dtypes", "safetensors", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-ml-py"),
    *("torchmetrics", "matplotlib", "rich", "click", "tomlkit", "platformdirs", "pytest", "hypothesis"),
)
LIBRARIES = {
    "CUDA driver": "libcuda.so.1",
    "NVDEC": "libnvcuvid.so.1",
    "NVENC": "libnvidia-encode.so.1",
    "NVML": "libnvidia-ml.so.1",
}


def software(record: Record) -> None:
    """Versions, and which of this package's requirements are not installed."""
    record.fact("python", platform.python_version())
    record.fact("platform", platform.platform())
    record.fact("cpu", _cpu())
    record.fact("cores", os.cpu_count())
    record.fact("memory in GB", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    for name in PACKAGES:
        try:
            record.row("packages", package=name, version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            record.row("packages", package=name, version="none")
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
        if not _installed(name):
            record.unavailable_reason(name, f"pyproject.toml wants {requirement}")
    for what, name in LIBRARIES.items():
        record.fact(f"library of {what}", _library(name))
    for tool in ("g++", "nvcc", "nvidia-smi", "ffmpeg"):
        record.fact(tool, shutil.which(tool) or "none")


def gpu(record: Record) -> None:
    """What PyTorch sees, and what a kernel costs to launch."""
    import torch

    from gpu_check.measure import need_gpu, spent
    from ssv2rt.core.hardware import choose_precision, gpu_architecture, native_bf16

    record.fact("torch", torch.__version__)
    record.fact("torch's CUDA", torch.version.cuda or "none")
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    record.fact("cuDNN", version or "none")
    where = need_gpu()
    properties = torch.cuda.get_device_properties(where)
    record.fact("GPU", properties.name)
    record.fact("GPUs", torch.cuda.device_count())
    record.fact("architecture", gpu_architecture(where))
    record.fact("multiprocessors", properties.multi_processor_count)
    record.fact("GPU memory in GB", properties.total_memory / 1e9)
    record.fact("L2 cache in MB", getattr(properties, "L2_cache_size", 0) / 1e6)
    record.fact("driver", _driver())
    record.fact("driver's capabilities in this container", os.environ.get("NVIDIA_DRIVER_CAPABILITIES", "not said"))
    record.fact("architectures of this torch", torch.cuda.get_arch_list())
    record.fact("native bf16", native_bf16(where))
    record.fact("precision that train.precision = 'auto' takes", choose_precision("auto", where))
    record.fact("cuDNN is at least 9.15", bool(version and version >= 91500))
    one = torch.zeros(1, device=where)
    record.fact("launching a kernel, in microseconds", spent(lambda: one.add_(1), where, seconds=0.3).median * 1e6)
    total = (torch.arange(1000, device=where).double() ** 2).sum().item()
    record.check("the GPU computes", total == 332833500.0, total)


def misfits(record: Record) -> None:
    """What `ssv2rt doctor` would say of this machine."""
    from ssv2rt.doctor.examine import look
    from ssv2rt.doctor.rules import remedies

    for sentence in remedies(look()):
        record.row("what ssv2rt doctor says", sentence=sentence)


def nvdec(record: Record) -> None:
    """What NVDEC decodes here, by its own word."""
    import torch

    from gpu_check.measure import need_gpu, without_nvdec
    from ssv2rt.pipelines.nvdec_limits import CODECS, Capabilities

    where = need_gpu()
    if reason := without_nvdec():
        raise Missing("NVDEC", reason)
    torch.zeros(1, device=where)  # the library asks the current CUDA context
    library = ctypes.CDLL("libnvcuvid.so.1")
    for name, number in CODECS.items():
        for bits in (8, 10):
            known = Capabilities(codec=number, chroma=1, bits_over_8=bits - 8)
            code = library.cuvidGetDecoderCaps(ctypes.byref(known))
            record.row(
                "NVDEC, 4:2:0",
                codec=name,
                bits=bits,
                decodes=bool(known.supported) if code == 0 else f"error {code}",
                units=int(known.units),
                smallest=f"{known.least_width} x {known.least_height}",
                largest=f"{known.most_width} x {known.most_height}",
            )


def products(record: Record) -> None:
    """Products of large matrices of random numbers, in every arithmetic."""
    import torch

    from gpu_check.measure import device, product_rate, spent

    where = device()
    size = 8192 if where.type == "cuda" else 512 if record.quick else 2048
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "TF32": torch.float32, "fp32": torch.float32}
    if where.type == "cpu":
        kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    seconds = record.moment(record.left() / 10)
    for name in steps(record, list(kinds), each=seconds, what="products in"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
        try:
            rate = product_rate(kinds[name], where, size=size, seconds=seconds)
        finally:
            torch.set_float32_matmul_precision(before)
        record.row("matrix products", arithmetic=name, size=size, tflops=rate / 1e12)
    if where.type == "cuda" and hasattr(torch, "_int_mm"):
        a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=where) for _ in range(2))
        try:
            median = spent(lambda: torch._int_mm(a, b.t()), where, seconds=seconds).median
        except RuntimeError as error:
            record.unavailable_reason("int8 products", str(error).splitlines()[0])
            return
        record.row("matrix products", arithmetic="int8", size=size, tflops=2 * size**3 / median / 1e12)


def bandwidth(record: Record) -> None:
    """Copies within the GPU's memory, and to and from it."""
    import torch

    from gpu_check.measure import device, spent

    where = device()
    count = 1 << (31 if where.type == "cuda" else 24)
    a = torch.empty(count, dtype=torch.uint8, device=where)
    b = torch.randint(0, 255, (1 << 20,), dtype=torch.uint8, device=where).repeat(count >> 20)
    seconds = record.moment(record.left() / 6)
    rate = 2 * count / spent(lambda: a.copy_(b), where, seconds=seconds).median
    record.row("copies", what=f"within the {where.type}, bytes read and written", gigabytes_per_second=rate / 1e9)
    if where.type == "cpu":
        return
    few = 1 << 28
    for name, pinned in (("pinned", True), ("pageable", False)):
        here = torch.empty(few, dtype=torch.uint8, pin_memory=pinned)
        up = few / spent(lambda here=here: a[:few].copy_(here, non_blocking=True), where, seconds=seconds).median  # type: ignore[misc]
        down = few / spent(lambda here=here: here.copy_(a[:few], non_blocking=True), where, seconds=seconds).median  # type: ignore[misc]
        record.row("copies", what=f"{name} memory to the GPU", gigabytes_per_second=up / 1e9)
        record.row("copies", what=f"GPU to {name} memory", gigabytes_per_second=down / 1e9)


def _installed(name: str) -> bool:
    """Whether a package is here, or for DALI another build of it."""
    builds = ("nvidia-dali-cuda120", "nvidia-dali-cuda130") if name.startswith("nvidia-dali") else (name,)
    for build in builds:
        try:
            importlib.metadata.version(build)
            return True
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


def _library(name: str) -> str:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return f"none ({error})"
    return "present"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "not told"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as rows:
            return next(row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
