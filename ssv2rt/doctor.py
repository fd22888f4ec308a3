"""What this machine has, what will therefore be used, and what to install for more."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass

import torch

from ssv2rt import __version__
from ssv2rt.cores import cores
from ssv2rt.engines.backends import NAMES, backend, choose_backend
from ssv2rt.hardware import choose_device, choose_precision, cpu_name, native_bf16, versions
from ssv2rt.pipelines.loader import choose_decoder
from ssv2rt.recipes import Data


@dataclass(frozen=True)
class Facts:
    """The examination."""

    machine: dict[str, str]
    packages: dict[str, str]
    used: dict[str, str]
    backends: dict[str, str]
    """'ready', or why not."""
    remedies: list[str]
    """What is wrong or could be better, and what to do; one sentence each."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def examine() -> Facts:
    """Looks at the machine and at what is installed. Changes nothing."""
    device = choose_device()
    machine = {
        "ssv2rt": __version__,
        "cpu": f"{cpu_name()}, {cores()} cores, {'with' if native_bf16(torch.device('cpu')) else 'no'} bf16",
        "gpu": _gpus(),
        "nvidia driver": _driver(),
        "nvdec": _library("libnvcuvid.so.1", "present", "no libnvcuvid.so.1"),
        "cudnn": _cudnn(),
    }
    used = {
        "training": f"{device}, {choose_precision('auto', device)}",
        "decoder": {"mixed": "NVDEC, through DALI", "cpu": "DALI on the CPU", "none": "PyAV on the CPU"}[
            choose_decoder(Data(), device)
        ],
        "engines": choose_backend(),
    }
    backends = {name: backend(name).missing() or "ready" for name in NAMES}
    return Facts(machine, versions(), used, backends, list(_remedies(machine)))


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
    }
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", min_width=20)
        table.add_column(overflow="fold")
        for key, value in rows.items():
            table.add_row(key, Text(value))  # as it is: [tensorrt] is no markup
        console.print(table)
        console.print()
    for remedy in facts.remedies:
        console.print(f"- {remedy}")


def _remedies(machine: dict[str, str]) -> list[str]:
    found = []
    torch_version = torch.__version__.partition("+")[0]
    if torch_version in ("2.9.0", "2.9.1"):
        found.append(f"torch {torch_version} runs Conv3d under AMP many times slower; install 2.9.2 or later")
    if machine["gpu"] == "none":
        if torch.version.cuda is None and machine["nvidia driver"] != "none":
            found.append("there is an NVIDIA driver, but this torch has no CUDA; install a CUDA build of torch")
        else:
            found.append("no GPU: training and scoring run on the CPU, which is right for the demo and slow for SSv2")
    else:
        if machine["nvdec"] != "present":
            found.append(
                "no NVDEC: in a container, add the 'video' driver capability (NVIDIA_DRIVER_CAPABILITIES=compute,video)"
            )
        if (torch.backends.cudnn.version() or 0) < 91500:
            found.append("cuDNN is older than 9.15, which makes Conv3d in half precision slow; install a newer torch")
        if backend("tensorrt").missing():
            found.append("for TensorRT engines, install it: pip install 'ssv2rt[tensorrt]'")
    return found


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} (sm{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)" for gpu in names)


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return file.readline().split("Module")[-1].split()[0]
    except (OSError, IndexError):
        return _library("libcuda.so.1", "present", "none")


def _library(name: str, present: str, absent: str) -> str:
    try:
        ctypes.CDLL(name)
    except OSError:
        return absent
    return present


def _cudnn() -> str:
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return "none" if version is None else f"{version // 10000}.{version // 100 % 100}.{version % 100}"
