"""Finds what is wrong with the hardware, packages and settings of a machine, and says what to do. Pure functions."""

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
"""The first cuDNN version with fast Conv3d in half precision. PyTorch's wheels for CUDA 12.6 install an older one."""
TENSORRT = ((10, 8), (12, 0))
"""The oldest supported version, and the first one after it that is not supported."""
SMALL_GPU = 8.0
"""GiB of GPU memory, below which the batch sizes of the recipes do not fit."""
SMALL_SHM = 1.0
"""GiB of /dev/shm. Docker gives a container 0.06 by default."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch can use."""

    name: str
    architecture: str
    """Such as sm90."""
    memory: float
    """GiB"""


@dataclass(frozen=True)
class Machine:
    """Facts about the hardware, packages and settings of a machine. An empty string means that there is none."""

    torch: str
    """Version, without a suffix such as +cpu."""
    torch_cuda: str = ""
    """CUDA version that torch was built with, such as 13.0; empty for a CPU build."""
    torch_kernels: tuple[str, ...] = ()
    """GPU architectures that torch was built for, such as sm_90."""
    gpus: tuple[Gpu, ...] = ()
    cuda_fails: str = ""
    """PyTorch's error message if it finds GPUs but cannot use them."""
    hidden: bool = False
    """Whether CUDA_VISIBLE_DEVICES names no GPU."""
    driver: str = ""
    """Version of the kernel's NVIDIA driver, or 'present'."""
    driver_cuda: str = ""
    """The newest CUDA version that the driver supports."""
    cudnn: int = 0
    """Version, such as 91500 for 9.15.0."""
    nvdec: bool = False
    """Whether the driver's library for NVDEC can be loaded."""
    decoder: DecoderCheck | None = None
    """Results of decoding with NVDEC; None if that was not tried."""
    nodes: bool = True
    """Whether /dev has an NVIDIA device."""
    capabilities: str | None = None
    """NVIDIA_DRIVER_CAPABILITIES, the parts of the driver that a container can use; None if it is not set."""
    packages: tuple[tuple[str, str], ...] = ()
    """Names and versions of installed packages."""
    broken: tuple[str, ...] = ()
    """Sentences about packages that cannot be imported, see `packages.broken_packages`."""
    tensorrt_fails: str = ""
    """Why TensorRT cannot be loaded although it is installed."""
    shm: float = 64.0
    """GiB of /dev/shm."""
    threads: str | None = None
    """OMP_NUM_THREADS; None if it is not set."""
    cache: str = ""
    """The cache folder."""
    cache_fails: str = ""
    """Why the cache folder cannot be written to."""

    def version(self, package: str) -> str:
        return dict(self.packages).get(package, "")


def remedies(machine: Machine) -> list[str]:
    """What is wrong or could be better, and what to do about it: one sentence each, the most important first."""
    return [sentence for rule in RULES for sentence in rule(machine)]


def _driver(m: Machine) -> Iterator[str]:
    """There is no GPU, or PyTorch cannot use it."""
    if m.gpus:
        return
    if m.cuda_fails:
        yield f"PyTorch finds a GPU but cannot use it ({m.cuda_fails}); see whether `nvidia-smi` lists it without errors"
    elif not m.driver:
        yield "no GPU found: training and scoring run on the CPU, which is fast enough for the demo, but slow for SSv2"
    elif not m.torch_cuda:
        yield (
            "there is an NVIDIA driver, but torch was built without CUDA; install a build with it: "
            "pip install --force-reinstall torch"
        )
    elif m.hidden:
        yield "CUDA_VISIBLE_DEVICES hides all GPUs; unset it"
    elif m.driver_cuda and _major(m.driver_cuda) < _major(m.torch_cuda):
        yield (
            f"driver {m.driver} supports CUDA up to {m.driver_cuda}, and torch needs {m.torch_cuda}; install driver "
            f"{DRIVERS.get(_major(m.torch_cuda), 'of that CUDA')} or later, or torch for CUDA 12: "
            f"pip install torch --index-url https://download.pytorch.org/whl/cu126"
        )
    elif not m.nodes:
        yield "there is an NVIDIA driver, but no /dev/nvidia0; start the container with `docker run --gpus all`"
    else:
        yield (
            f"driver {m.driver} and torch for CUDA {m.torch_cuda} are installed, but PyTorch finds no GPU; see whether "
            f"`nvidia-smi` lists it"
        )


def _torch(m: Machine) -> Iterator[str]:
    if m.torch in SLOW_TORCH:
        yield f"torch {m.torch} runs Conv3d in mixed precision many times slower than other versions; install 2.10 or later"
    for gpu in m.gpus:
        if m.torch_kernels and not _has_kernels(gpu.architecture, m.torch_kernels):
            yield (
                f"torch {m.torch} has no kernels for {gpu.name} ({gpu.architecture}), only for {', '.join(m.torch_kernels)}; "
                f"GPUs older than sm75 need torch for CUDA 12: pip install torch --index-url https://download.pytorch.org/whl/cu126"
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
            f"NVDEC cannot be used: NVIDIA_DRIVER_CAPABILITIES is '{m.capabilities}', without 'video'; start the container "
            f"with -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility, or decode on the CPU: data.decoder = 'pyav'"
        )
    else:
        yield (
            "NVDEC cannot be used, since libnvcuvid.so.1 is missing; install the driver's decoding library (libnvcuvid1 on "
            "Debian, libnvidia-decode on Ubuntu), or decode on the CPU: data.decoder = 'pyav'"
        )


def _decoder(m: Machine) -> Iterator[str]:
    """NVDEC decodes wrong frames, or more slowly than PyAV."""
    if m.decoder is None:
        return
    for kind, what in m.decoder.kinds.items():
        if what.startswith("decoded by PyAV"):
            yield (
                f"NVDEC decodes {kind} differently from PyAV ({what.partition(': ')[2]}); PyAV decodes these videos instead, "
                f"and nothing needs to be done"
            )
    if not m.decoder.keeps_decoders:
        yield (
            f"NVDEC takes {m.decoder.next:.0f} ms for each clip like those of SSv2, since DALI creates a new decoder for "
            f"every clip; decode on the CPU: data.decoder = 'pyav'"
        )
    elif m.decoder.nvdec < m.decoder.pyav:
        yield (
            f"NVDEC decodes {m.decoder.nvdec:.0f} clips/s like those of SSv2, and PyAV on the CPU {m.decoder.pyav:.0f}; use "
            f"both (data.cpu_share, which training measures by default), or the CPU alone: data.decoder = 'pyav'"
        )


def _dali(m: Machine) -> Iterator[str]:
    builds = [name for name, _ in m.packages if name.startswith("nvidia-dali-cuda")]
    if len(builds) > 1:
        yield (
            f"{' and '.join(builds)} are both installed, and overwrite each other's files; keep one: "
            f"pip uninstall -y {' '.join(builds)}, and then "
            f"pip install {'nvidia-dali-cuda130' if _major(m.torch_cuda) >= 13 else 'nvidia-dali-cuda120'}"
        )
    elif not builds:
        yield "DALI is not installed; pip install nvidia-dali-cuda120, or nvidia-dali-cuda130 with CUDA 13"
    elif m.gpus:
        wanted = int(builds[0].removeprefix("nvidia-dali-cuda")) // 10
        if m.driver_cuda and _major(m.driver_cuda) < wanted:
            yield (
                f"{builds[0]} needs driver {DRIVERS.get(wanted, 'of its CUDA')} or later, and driver {m.driver} supports "
                f"CUDA up to {m.driver_cuda}; pip uninstall -y {builds[0]}, and then pip install nvidia-dali-cuda120"
            )
        elif m.torch_cuda and wanted != _major(m.torch_cuda):
            other = f"nvidia-dali-cuda{_major(m.torch_cuda)}0"
            yield (
                f"{builds[0]} and torch for CUDA {m.torch_cuda} load two versions of CUDA's libraries, which works but "
                f"takes more memory; to load one: pip uninstall -y {builds[0]}, and then pip install {other}"
            )


def _tensorrt(m: Machine) -> Iterator[str]:
    if not m.gpus:
        return
    version = m.version("tensorrt") or m.version("tensorrt-cu13") or m.version("tensorrt-cu12")
    build = f"tensorrt-cu{min(13, _major(m.driver_cuda) or 13)}"
    if not version:
        yield (
            f"TensorRT, the fastest engine backend on GPUs, is not installed; pip install 'ssv2rt[tensorrt]', or pip install "
            f"{build} for another CUDA version"
        )
        return
    first, last = TENSORRT
    if not first <= _numbers(version)[:2] < last:
        yield (
            f"TensorRT {version} is not supported, but {'.'.join(map(str, first))} and later versions before {last[0]} are; "
            f"pip install '{build}>={'.'.join(map(str, first))},<{last[0]}'"
        )
    elif m.version("tensorrt-cu13") and m.driver_cuda and _major(m.driver_cuda) < 13:
        yield (
            f"TensorRT {version} is built for CUDA 13, and driver {m.driver} supports CUDA up to {m.driver_cuda}; "
            f"pip uninstall -y tensorrt tensorrt-cu13, and then pip install '{build}>=10.8,<12'"
        )
    elif m.tensorrt_fails:
        yield (
            f"TensorRT {version} is installed, but cannot be loaded: {m.tensorrt_fails}; "
            f"pip install --force-reinstall {build}"
        )


def _memory(m: Machine) -> Iterator[str]:
    for gpu in m.gpus:
        if gpu.memory < SMALL_GPU:
            yield (
                f"{gpu.name} has {gpu.memory:.0f} GiB of memory, too little for the batch sizes of the recipes; let training "
                f"find one that fits: --set train.batch_size=auto, which is larger with --set model.checkpointing=true"
            )
    if len(m.gpus) > 1 and m.shm < SMALL_SHM:
        yield (
            f"/dev/shm has {1024 * m.shm:.0f} MiB, too little for training on several GPUs (NCCL); "
            f"start the container with --shm-size=1g or --ipc=host"
        )


def _packages(m: Machine) -> Iterator[str]:
    yield from m.broken


def _settings(m: Machine) -> Iterator[str]:
    """Environment variables with values that cannot be used."""
    if m.threads is not None and not all(part.strip().isdecimal() and int(part) for part in m.threads.split(",")):
        yield f"OMP_NUM_THREADS is '{m.threads}', but must be a number of threads, at least 1; unset it"
    if m.cache_fails:
        yield (
            f"the cache folder '{m.cache}' cannot be written to ({m.cache_fails}), but the demo's data set and the manifests "
            f"of read-only data sets are kept there; set SSV2RT_CACHE to a folder that you can write to"
        )


RULES: tuple[Callable[[Machine], Iterator[str]], ...] = (
    _packages,
    _driver,
    _torch,
    _nvdec,
    _decoder,
    _dali,
    _tensorrt,
    _memory,
    _settings,
)


def shown(cudnn: int) -> str:
    """The version that a number like 91500 stands for: 9.15.0. Before version 9, numbers are like 8902 for 8.9.2."""
    unit = 10_000 if cudnn >= 90_000 else 1000
    return f"{cudnn // unit}.{cudnn % unit // 100}.{cudnn % 100}"


def _has_kernels(architecture: str, kernels: tuple[str, ...]) -> bool:
    """Whether torch runs on a GPU: it has kernels for its generation that are not newer, or PTX for an older one."""
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
