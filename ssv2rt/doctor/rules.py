"""What does not fit together on a machine, and what to do about it: plain facts in, sentences out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssv2rt.doctor.decoder_check import DecoderCheck

DRIVERS = {13: "580", 12: "525"}
"""The oldest driver for each CUDA. Within one of them, newer runtimes run on older drivers.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""
SLOW_TORCH = ("2.9.0", "2.9.1")
FAST_CUDNN = 91500
"""The first cuDNN whose Conv3d in half precision is fast; torch's wheels for CUDA 12.6 bring an older one."""
TENSORRT = ((10, 8), (12, 0))
"""The first version that is supported, and the first one that is not."""
SMALL_GPU = 8.0
"""GiB. Less does not hold the batches of the recipes."""
SMALL_SHM = 1.0
"""GiB of /dev/shm; a container has 0.06 unless it is told otherwise."""


@dataclass(frozen=True)
class Gpu:
    """One that PyTorch can use."""

    name: str
    architecture: str
    """Such as sm90."""
    memory: float
    """GiB"""


@dataclass(frozen=True)
class Machine:
    """What matters of a machine and of what is installed. Empty strings stand for what is not there."""

    torch: str
    """Version, without what follows a plus."""
    torch_cuda: str = ""
    """CUDA that torch was built with, such as 13.0; empty for a CPU build."""
    torch_kernels: tuple[str, ...] = ()
    """GPU architectures that torch was built for, such as sm_90."""
    gpus: tuple[Gpu, ...] = ()
    hidden: bool = False
    """Whether CUDA_VISIBLE_DEVICES names no GPU."""
    driver: str = ""
    """Version of the kernel's NVIDIA driver, or 'present'."""
    driver_cuda: str = ""
    """The newest CUDA that the driver runs, by its own word."""
    cudnn: int = 0
    """Such as 91500."""
    nvdec: bool = False
    """Whether the driver's decoding library is there."""
    decoder: DecoderCheck | None = None
    """What NVDEC was seen to do; None if it was not tried."""
    nodes: bool = True
    """Whether /dev has an NVIDIA device."""
    capabilities: str | None = None
    """NVIDIA_DRIVER_CAPABILITIES, which says what of the driver a container is given; None if it is not set."""
    packages: tuple[tuple[str, str], ...] = ()
    """Names and versions of what is installed."""
    tensorrt_fails: str = ""
    """Why TensorRT does not load, where it is installed."""
    shm: float = 64.0
    """GiB of /dev/shm"""

    def version(self, package: str) -> str:
        return dict(self.packages).get(package, "")


def remedies(machine: Machine) -> list[str]:
    """What is wrong or could be better, and what to do about it: a sentence each, the worst first."""
    return [sentence for rule in RULES for sentence in rule(machine)]


def _driver(m: Machine) -> Iterator[str]:
    """PyTorch sees no GPU although there is a driver, or none is there."""
    if m.gpus:
        return
    if not m.driver:
        yield "no GPU: training and scoring run on the CPU, which is right for the demo and slow for SSv2"
    elif not m.torch_cuda:
        yield "there is a driver, but this torch has no CUDA; install one that has it: pip install --force-reinstall torch"
    elif m.hidden:
        yield "CUDA_VISIBLE_DEVICES names no GPU; unset it"
    elif m.driver_cuda and _major(m.driver_cuda) < _major(m.torch_cuda):
        yield (
            f"driver {m.driver} runs CUDA {m.driver_cuda} at most, and this torch needs {m.torch_cuda}; install driver "
            f"{DRIVERS.get(_major(m.torch_cuda), 'of that CUDA')} or later, or torch for CUDA 12: "
            f"pip install torch --index-url https://download.pytorch.org/whl/cu126"
        )
    elif not m.nodes:
        yield "there is a driver, but no /dev/nvidia0; start the container with `docker run --gpus all`"
    else:
        yield f"driver {m.driver} and torch for CUDA {m.torch_cuda} are here, but PyTorch sees no GPU; see `nvidia-smi`"


def _torch(m: Machine) -> Iterator[str]:
    if m.torch in SLOW_TORCH:
        yield f"torch {m.torch} runs Conv3d under AMP many times slower; install 2.10 or later"
    for gpu in m.gpus:
        if m.torch_kernels and not _has_kernels(gpu.architecture, m.torch_kernels):
            yield (
                f"this torch has no kernels for {gpu.name} ({gpu.architecture}), only for {', '.join(m.torch_kernels)}; "
                f"GPUs before sm75 need torch for CUDA 12: pip install torch --index-url https://download.pytorch.org/whl/cu126"
            )
    if m.gpus and m.cudnn and m.cudnn < FAST_CUDNN:
        package = f"nvidia-cudnn-cu{_major(m.torch_cuda)}"
        yield (
            f"cuDNN {shown(m.cudnn)} is older than {shown(FAST_CUDNN)}, which makes Conv3d in half precision slow; "
            f"pip install --upgrade '{package}>=9.15', or torch for CUDA 13"
        )


def _nvdec(m: Machine) -> Iterator[str]:
    if not m.gpus or m.nvdec:
        return
    given = (m.capabilities or "").replace(" ", "").split(",")
    if m.capabilities is not None and not {"video", "all"} & set(given):
        yield (
            f"no NVDEC: NVIDIA_DRIVER_CAPABILITIES is '{m.capabilities}', and the container has no 'video'; "
            f"start it with -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility, or decode on the CPU: data.decoder = 'pyav'"
        )
    else:
        yield (
            "no NVDEC: there is no libnvcuvid.so.1; install the driver's decoding library (libnvcuvid1 on Debian, "
            "libnvidia-decode on Ubuntu), or decode on the CPU: data.decoder = 'pyav'"
        )


def _decoder(m: Machine) -> Iterator[str]:
    """What NVDEC does not do as well as PyAV."""
    if m.decoder is None:
        return
    for kind, what in m.decoder.kinds.items():
        if what.startswith("decoded by PyAV"):
            yield f"NVDEC gets {kind} wrong ({what.partition(': ')[2]}); PyAV decodes such videos, and there is nothing to do"
    if not m.decoder.keeps_decoders:
        yield (
            f"NVDEC takes {m.decoder.next:.0f} ms for a clip that it has decoded before, since DALI makes a decoder for each "
            f"clip of videos like SSv2's; decode by PyAV: data.decoder = 'pyav'"
        )
    elif m.decoder.nvdec < m.decoder.pyav:
        yield (
            f"NVDEC makes {m.decoder.nvdec:.0f} clips a second of videos like SSv2's, and PyAV on this machine's cores "
            f"{m.decoder.pyav:.0f}; let both decode (data.cpu_share, measured where training starts), or data.decoder = 'pyav'"
        )


def _dali(m: Machine) -> Iterator[str]:
    builds = [name for name, _ in m.packages if name.startswith("nvidia-dali-cuda")]
    if len(builds) > 1:
        yield (
            f"{' and '.join(builds)} are installed over each other; keep one: pip uninstall -y {' '.join(builds)}, "
            f"and then pip install {'nvidia-dali-cuda130' if _major(m.torch_cuda) >= 13 else 'nvidia-dali-cuda120'}"
        )
    elif not builds:
        yield "DALI is not installed; pip install nvidia-dali-cuda120, or nvidia-dali-cuda130 with CUDA 13"
    elif m.gpus:
        wanted = int(builds[0].removeprefix("nvidia-dali-cuda")) // 10
        if m.driver_cuda and _major(m.driver_cuda) < wanted:
            yield (
                f"{builds[0]} needs driver {DRIVERS.get(wanted, 'of its CUDA')} or later, and this one runs CUDA "
                f"{m.driver_cuda} at most; pip uninstall -y {builds[0]}, and then pip install nvidia-dali-cuda120"
            )
        elif m.torch_cuda and wanted != _major(m.torch_cuda):
            other = f"nvidia-dali-cuda{_major(m.torch_cuda)}0"
            yield (
                f"{builds[0]} and torch for CUDA {m.torch_cuda} bring two CUDA runtimes, which work side by side but take "
                f"more memory; to have one: pip uninstall -y {builds[0]}, and then pip install {other}"
            )


def _tensorrt(m: Machine) -> Iterator[str]:
    if not m.gpus:
        return
    version = m.version("tensorrt") or m.version("tensorrt-cu13") or m.version("tensorrt-cu12")
    build = f"tensorrt-cu{min(13, _major(m.driver_cuda) or 13)}"
    if not version:
        yield f"for TensorRT engines, install it: pip install 'ssv2rt[tensorrt]', or {build} where that does not fit"
        return
    first, last = TENSORRT
    if not first <= _numbers(version)[:2] < last:
        yield (
            f"TensorRT {version} is not supported, {'.'.join(map(str, first))} and later before {last[0]} are; "
            f"pip install '{build}>={'.'.join(map(str, first))},<{last[0]}'"
        )
    elif m.version("tensorrt-cu13") and m.driver_cuda and _major(m.driver_cuda) < 13:
        yield (
            f"TensorRT {version} is built for CUDA 13, and driver {m.driver} runs CUDA {m.driver_cuda} at most; "
            f"pip uninstall -y tensorrt tensorrt-cu13, and then pip install '{build}>=10.8,<12'"
        )
    elif m.tensorrt_fails:
        yield f"TensorRT {version} is installed, but does not load: {m.tensorrt_fails}; install it anew: pip install {build}"


def _memory(m: Machine) -> Iterator[str]:
    for gpu in m.gpus:
        if gpu.memory < SMALL_GPU:
            yield (
                f"{gpu.name} has {gpu.memory:.0f} GiB, and the recipes' batches want more; let training find one that fits: "
                f"--set train.batch_size=auto, and with model.checkpointing=true it is larger"
            )
    if len(m.gpus) > 1 and m.shm < SMALL_SHM:
        yield (
            f"/dev/shm has {1024 * m.shm:.0f} MiB, too little for training on several GPUs (NCCL); "
            f"start the container with --shm-size=1g or --ipc=host"
        )


RULES: tuple[Callable[[Machine], Iterator[str]], ...] = (_driver, _torch, _nvdec, _decoder, _dali, _tensorrt, _memory)


def shown(cudnn: int) -> str:
    """91500 as 9.15.0; since version 9 the major number has four digits behind it, before it three."""
    unit = 10_000 if cudnn >= 90_000 else 1000
    return f"{cudnn // unit}.{cudnn % unit // 100}.{cudnn % 100}"


def _has_kernels(architecture: str, kernels: tuple[str, ...]) -> bool:
    """Whether torch runs on a GPU: by kernels of its generation that are no newer, or by PTX of any older one."""
    here = int(architecture.removeprefix("sm"))
    for kernel in kernels:
        kind, _, digits = kernel.partition("_")
        number = int("".join(c for c in digits if c.isdigit()) or 0)
        if number <= here and (kind == "compute" or number // 10 == here // 10):
            return True
    return False


def _major(version: str) -> int:
    return (_numbers(version) or (0,))[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
