"""Finds out what this machine has, which device, decoder and engine backend commands will use, and what to install."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ssv2rt import __version__
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, choose_precision, cpu_name, gpu_architecture, native_bf16, versions
from ssv2rt.core.log import printable
from ssv2rt.core.recipes import Data
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.doctor.decoder_check import DecoderCheck, check_decoder
from ssv2rt.doctor.packages import OTHERS, broken_packages
from ssv2rt.doctor.rules import Gpu, Machine, remedies, shown
from ssv2rt.engines.backends.registry import NAMES, backend, choose_backend
from ssv2rt.pipelines.decoder_choice import choose_decoder
from ssv2rt.pipelines.nvdec_limits import CHROMAS, limits_of

logger = logging.getLogger(__name__)


TESTED = {
    "not on a GPU yet": "NVDEC, CUDA, CUDA graphs, bf16 and fp16 training, TensorRT engines, several GPUs",
    "on CPUs": "the same code with DALI's CPU decoder, and engines that TensorRT for RTX builds without a GPU",
    "to test a GPU": "python scripts/gpu_check.py, in a checkout of the source code; takes 10 minutes",
}
"""How far this package has been tested on hardware. Changes when `docs/gpu/` has a record."""


@dataclass(frozen=True)
class Facts:
    """What `ssv2rt doctor` prints."""

    machine: dict[str, str]
    packages: dict[str, str]
    used: dict[str, str]
    backends: dict[str, str]
    """For each engine backend 'ready', or why it cannot be used."""
    nvdec: dict[str, object]
    """What NVDEC declares to decode, and the results of trying it; empty without a GPU."""
    proof: dict[str, str]
    """How far this package has been tested on hardware."""
    remedies: list[str]
    """What is wrong or could be better, and what to do; one sentence each."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def examine() -> Facts:
    """Examines the machine and what is installed. Changes nothing."""
    seen = look()
    device = torch.device("cpu") if seen.cuda_fails else choose_device()
    nvdec: dict[str, object] = {}
    if seen.gpus and seen.nvdec:
        nvdec, checked = _check(device)
        seen = replace(seen, decoder=checked)
    machine = {
        "ssv2rt": __version__,
        "cpu": f"{cpu_name()}, {cores()} cores, {'with' if native_bf16(torch.device('cpu')) else 'no'} bf16",
        "gpu": ", ".join(f"{gpu.name} ({gpu.architecture}, {gpu.memory:.0f} GiB)" for gpu in seen.gpus) or "none",
        "nvidia driver": seen.driver + (f" (CUDA up to {seen.driver_cuda})" if seen.driver_cuda else "") or "none",
        "torch's cuda": seen.torch_cuda or "none",
        "nvdec": "present" if seen.nvdec else "no libnvcuvid.so.1",
        "cudnn": shown(seen.cudnn) if seen.cudnn else "none",
        "cache": str(cache_folder()),
    }
    used = {
        "training": f"{device}, {choose_precision('auto', device)}",
        "decoder": {"mixed": "NVDEC, through DALI", "cpu": "DALI on the CPU", "none": "PyAV on the CPU"}[
            choose_decoder(Data(), device)
        ],
        "engines": choose_backend(),
    }
    backends = {name: backend(name).unavailable_reason() or "ready" for name in NAMES}
    return Facts(machine, versions(), used, backends, nvdec, TESTED, remedies(seen))


def _check(device: torch.device) -> tuple[dict[str, object], DecoderCheck | None]:
    """What NVDEC declares to decode, and the results of decoding some clips."""
    limits: dict[str, object] = {}
    logger.info("decoding some clips with NVDEC, which takes some seconds")
    try:
        limits = {
            f"{codec} {chroma} {bits} bit": f"{limit.least[0]}x{limit.least[1]} to {limit.most[0]}x{limit.most[1]}"
            for (codec, number, bits), limit in sorted(limits_of(device).items())
            for chroma in CHROMAS
            if CHROMAS[chroma] == number
        }
        checked = check_decoder(device)
    except (UserError, OSError, RuntimeError) as error:
        return limits | {"fails": " ".join(str(error).split())}, None
    return limits | asdict(checked), checked


def look() -> Machine:
    """The facts that `rules` need. Works without a GPU, and does not initialize CUDA on one."""
    gpus, cuda_fails = [], ""
    try:
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            about = torch.cuda.get_device_properties(number)
            gpus.append(Gpu(about.name, gpu_architecture(torch.device("cuda", number)), about.total_memory / 2**30))
    except RuntimeError as error:
        gpus, cuda_fails = [], " ".join(str(error).split())[:200] or "unknown error"
    packages = versions()
    tensorrt = any(name.startswith("tensorrt") and name != "tensorrt-rtx" for name in packages)
    return Machine(
        torch=torch.__version__.partition("+")[0],
        torch_cuda=torch.version.cuda or "",
        torch_kernels=tuple(torch.cuda.get_arch_list()) if gpus else (),
        gpus=tuple(gpus),
        cuda_fails=cuda_fails,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
        driver=_driver(),
        driver_cuda=_driver_cuda(),
        cudnn=(torch.backends.cudnn.version() or 0) if torch.backends.cudnn.is_available() else 0,
        nvdec=_library("libnvcuvid.so.1") is not None,
        nodes=any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists(),
        capabilities=os.environ.get("NVIDIA_DRIVER_CAPABILITIES"),
        packages=tuple(packages.items()),
        tensorrt_fails=backend("tensorrt").unavailable_reason() if gpus and tensorrt else "",
        shm=_gib("/dev/shm"),
        broken=tuple(broken_packages(OTHERS)),
        threads=os.environ.get("OMP_NUM_THREADS"),
        cache=str(cache_folder()),
        cache_fails=_why_not_writable(cache_folder()),
    )


def show(facts: Facts) -> None:
    """Prints the examination to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    sections = {
        "this machine": facts.machine,
        "installed": facts.packages,
        "used": facts.used,
        "engines": facts.backends,
        "nvdec": {key: str(value) for key, value in facts.nvdec.items()},
        "tested": facts.proof,
    }
    for title, rows in sections.items():
        if not rows:
            continue
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", min_width=20)
        table.add_column(overflow="fold")
        for key, value in rows.items():
            table.add_row(key, Text(printable(value)))  # Text, since [tensorrt] is not markup
        console.print(table)
        console.print()
    for remedy in facts.remedies:
        console.print(printable(f"- {remedy}"), soft_wrap=True)  # one line, from which commands can be copied


def _driver() -> str:
    """Version of the NVIDIA driver; 'present' if only its library was found; empty without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        version = re.search(r"\d{3,}\.\d+(\.\d+)?", text)
    except OSError:
        version = None
    return version[0] if version else "present" if _library("libcuda.so.1") is not None else ""


def _driver_cuda() -> str:
    """The newest CUDA version that the driver supports; empty if unknown. Does not initialize CUDA."""
    library, number = _library("libcuda.so.1"), ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _gib(folder: str) -> float:
    """Size of a file system in GiB; infinite if it is unknown."""
    try:
        about = os.statvfs(folder)
    except OSError:
        return float("inf")
    return about.f_frsize * about.f_blocks / 2**30


def _why_not_writable(folder: Path) -> str:
    """Why a folder cannot be made or written to; empty if it can. Makes nothing."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
    if not there.is_dir():
        return os.strerror(errno.ENOTDIR)
    return "" if os.access(there, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
