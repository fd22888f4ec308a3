"""The hardware and software of this machine: device, precision, and versions of installed packages."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Literal

import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PACKAGES = (
    "torch",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "av",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "numpy",
)


def choose_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def native_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolves `train.precision` of a recipe for a device: "auto" is bf16 if native, else fp16 on a GPU, fp32 on a CPU.

    Raises:
        UsageError: fp16 on a CPU, where it brings nothing.
    """
    if wanted == "auto":
        return "bf16" if native_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("train.precision = 'fp16' needs a GPU; take 'auto', 'bf16' or 'fp32' on a CPU")
    assert wanted in ("fp32", "bf16", "fp16")
    return wanted  # type: ignore[return-value]


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(device: torch.device) -> dict[str, object]:
    """Facts about this machine for the `environment.json` of a run."""
    facts: dict[str, object] = {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "device": str(device),
        "versions": versions(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_architecture"] = gpu_architecture(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def gpu_architecture(device: torch.device) -> str:
    """A GPU's architecture, such as sm90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def cpu_name() -> str:
    """Model name of the CPU, or its architecture if the model name is unknown."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
