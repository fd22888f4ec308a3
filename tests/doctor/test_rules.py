"""What `ssv2rt doctor` makes of a machine: each misfit is named with its remedy, and what fits is left alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssv2rt.doctor.decoder_check import DecoderCheck, check_decoder
from ssv2rt.doctor.examine import look
from ssv2rt.doctor.packages import OTHERS, broken_packages
from ssv2rt.doctor.rules import Gpu, Machine, remedies, shown
from tests.cli import ssv2rt

H100 = Gpu("NVIDIA H100", "sm90", 79.2)
GOOD = Machine(
    torch="2.13.0",
    torch_cuda="13.0",
    torch_kernels=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    gpus=(H100,),
    driver="580.95.05",
    driver_cuda="13.0",
    cudnn=92000,
    nvdec=True,
    capabilities="compute,video,utility",
    packages=(("nvidia-dali-cuda130", "2.4.0"), ("tensorrt", "11.4.0.106"), ("tensorrt-cu13", "11.4.0.106")),
)
SEEN = DecoderCheck({"vp9 yuv420p of odd width, hidden": "as by PyAV in 2 clips"}, 3000, 900, first=400, next=6)
OLD_DRIVER = replace(GOOD, driver="535.104.05", driver_cuda="12.2")
CUDA12 = replace(
    OLD_DRIVER,
    torch_cuda="12.6",
    torch_kernels=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    packages=(("nvidia-dali-cuda120", "2.4.0"), ("tensorrt-cu12", "10.13.0.35")),
)


@pytest.mark.parametrize(
    "machine",
    [
        GOOD,
        CUDA12,
        replace(GOOD, capabilities=None),
        replace(GOOD, capabilities="all"),
        replace(GOOD, threads="4,2"),
        replace(GOOD, decoder=SEEN),
    ],
)
def test_what_fits_is_left_alone(machine: Machine) -> None:
    assert remedies(machine) == []


def packages(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "11.4.0.106" if name.startswith("tensorrt") else "2.4.0") for name in names)


MISFITS: list[tuple[str, Machine, str, str]] = [
    (
        "a kind that NVDEC gets wrong",
        replace(
            GOOD, decoder=replace(SEEN, kinds={"vp8 yuv420p, plain": "decoded by PyAV: it gives frame 2 for frame 1"})
        ),
        "NVDEC decodes vp8 yuv420p, plain differently from PyAV (it gives frame 2 for frame 1)",
        "PyAV decodes these videos instead",
    ),
    (
        "a decoder for each clip",
        replace(GOOD, decoder=replace(SEEN, first=300, next=260)),
        "NVDEC takes 260 ms for each clip like those of SSv2",
        "data.decoder = 'pyav'",
    ),
    (
        "cores that are faster",
        replace(GOOD, decoder=replace(SEEN, nvdec=300)),
        "NVDEC decodes 300 clips/s like those of SSv2, and PyAV on the CPU 900",
        "data.cpu_share",
    ),
    (
        "torch 2.9",
        replace(GOOD, torch="2.9.1"),
        "torch 2.9.1 runs Conv3d in mixed precision many times slower",
        "2.10 or later",
    ),
    (
        "old cuDNN",
        replace(CUDA12, cudnn=91002),
        "cuDNN 9.10.2 is older than 9.15.0",
        "pip install --upgrade 'nvidia-cudnn-cu12>=9.15'",
    ),
    (
        "no video capability",
        replace(GOOD, nvdec=False, capabilities="compute,utility"),
        "NVIDIA_DRIVER_CAPABILITIES is 'compute,utility'",
        "-e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility",
    ),
    ("no NVDEC", replace(GOOD, nvdec=False, capabilities=None), "libnvcuvid.so.1 is missing", "libnvcuvid1 on Debian"),
    (
        "no NVDEC in spite of the capability",
        replace(GOOD, nvdec=False),
        "libnvcuvid.so.1 is missing",
        "data.decoder = 'pyav'",
    ),
    (
        "two DALIs",
        replace(GOOD, packages=packages("nvidia-dali-cuda120", "nvidia-dali-cuda130", "tensorrt")),
        "overwrite each other's files",
        "pip install nvidia-dali-cuda130",
    ),
    (
        "DALI for another CUDA than torch",
        replace(GOOD, packages=packages("nvidia-dali-cuda120", "tensorrt")),
        "two versions of CUDA's libraries",
        "pip install nvidia-dali-cuda130",
    ),
    (
        "DALI for a newer driver",
        replace(CUDA12, packages=packages("nvidia-dali-cuda130", "tensorrt-cu12")),
        "nvidia-dali-cuda130 needs driver 580 or later",
        "pip install nvidia-dali-cuda120",
    ),
    ("no DALI", replace(GOOD, packages=packages("tensorrt")), "DALI is not installed", "nvidia-dali-cuda120"),
    (
        "no TensorRT",
        replace(GOOD, packages=packages("nvidia-dali-cuda130")),
        "TensorRT, the fastest engine backend on GPUs, is not installed",
        "ssv2rt[tensorrt]",
    ),
    (
        "old TensorRT",
        replace(GOOD, packages=(("nvidia-dali-cuda130", "2.4.0"), ("tensorrt", "10.7.0"))),
        "TensorRT 10.7.0 is not supported",
        "'tensorrt-cu13>=10.8,<12'",
    ),
    (
        "TensorRT to come",
        replace(CUDA12, packages=(("nvidia-dali-cuda120", "2.4.0"), ("tensorrt", "12.0.1"))),
        "TensorRT 12.0.1 is not supported",
        "'tensorrt-cu12>=10.8,<12'",
    ),
    (
        "TensorRT for a newer driver",
        replace(CUDA12, packages=packages("nvidia-dali-cuda120", "tensorrt", "tensorrt-cu13")),
        "is built for CUDA 13, and driver 535.104.05 supports CUDA up to 12.2",
        "pip install 'tensorrt-cu12",
    ),
    (
        "TensorRT that does not load",
        replace(GOOD, tensorrt_fails="no libnvinfer"),
        "no libnvinfer",
        "pip install --force-reinstall tensorrt-cu13",
    ),
    (
        "driver older than torch",
        replace(OLD_DRIVER, gpus=()),
        "driver 535.104.05 supports CUDA up to 12.2, and torch needs 13.0",
        "install driver 580 or later",
    ),
    (
        "torch without CUDA",
        replace(GOOD, gpus=(), torch_cuda=""),
        "torch was built without CUDA",
        "install a build with it",
    ),
    ("hidden", replace(GOOD, gpus=(), hidden=True), "CUDA_VISIBLE_DEVICES hides all GPUs", "unset it"),
    ("no device in the container", replace(GOOD, gpus=(), nodes=False), "no /dev/nvidia0", "docker run --gpus all"),
    ("who knows why", replace(GOOD, gpus=()), "PyTorch finds no GPU", "nvidia-smi"),
    ("no GPU", Machine("2.13.0", packages=packages("nvidia-dali-cuda120")), "no GPU", "on the CPU"),
    (
        "a GPU that is too old",
        replace(GOOD, gpus=(Gpu("Tesla V100", "sm70", 16),)),
        "no kernels for Tesla V100 (sm70)",
        "whl/cu126",
    ),
    (
        "little memory",
        replace(GOOD, gpus=(Gpu("T400", "sm75", 4),)),
        "T400 has 4 GiB of memory",
        "train.batch_size=auto",
    ),
    ("a GPU that fails", replace(GOOD, gpus=(), cuda_fails="error 802"), "cannot use it (error 802)", "nvidia-smi"),
    ("a broken package", replace(GOOD, broken=("x is not installed; pip install x",)), "x is not", "pip install x"),
    ("bad OMP_NUM_THREADS", replace(GOOD, threads="abc"), "OMP_NUM_THREADS is 'abc'", "unset it"),
    ("no threads", replace(GOOD, threads="0"), "OMP_NUM_THREADS is '0'", "unset it"),
    ("no cache", replace(GOOD, cache="/x", cache_fails="No"), "folder '/x' cannot be written to (No)", "SSV2RT_CACHE"),
    ("little shm", replace(GOOD, gpus=(H100, H100), shm=0.0625), "/dev/shm has 64 MiB", "--shm-size=1g"),
]


@pytest.mark.parametrize(("machine", "wrong", "remedy"), [m[1:] for m in MISFITS], ids=[m[0] for m in MISFITS])
def test_a_misfit_is_named_with_its_remedy_and_nothing_else_is(machine: Machine, wrong: str, remedy: str) -> None:
    (sentence,) = remedies(machine)
    assert wrong in sentence and remedy in sentence and "\n" not in sentence


def test_misfits_are_all_named() -> None:
    bad = replace(GOOD, torch="2.9.0", nvdec=False, cudnn=91002, packages=())
    assert len(remedies(bad)) == 5


def test_newer_gpus_run_by_ptx_only() -> None:
    newer = replace(GOOD, gpus=(Gpu("next", "sm130", 100),))
    assert remedies(newer) == []
    assert len(remedies(replace(newer, torch_kernels=("sm_90", "sm_120")))) == 1


def test_cudnn_versions_are_read_in_both_ways() -> None:
    assert [shown(number) for number in (91002, 91500, 8907)] == ["9.10.2", "9.15.0", "8.9.7"]


def test_this_machine_is_looked_at() -> None:
    machine = look()
    assert machine.torch and machine.version("numpy") and machine.shm > 0
    assert bool(machine.gpus) <= bool(machine.driver)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_decoder_of_this_machine_is_tried(device: str) -> None:
    found = check_decoder(torch.device(device), {"cpu": "dali", "cuda": "nvdec"}[device], rounds=2)
    assert "vp9 yuv420p of odd width, hidden" in found.kinds
    assert set(found.kinds.values()) == {"as by PyAV in 2 clips"} or device == "cuda"
    assert min(found.nvdec, found.pyav, found.first, found.next) > 0


def test_bad_settings_are_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "file" / "\x1b[2Jcache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    done = ssv2rt("doctor")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    assert "cannot be written to (Not a directory)" in said and "OMP_NUM_THREADS is 'many'" in said


BROKEN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from ssv2rt.cli import main
main()
"""


@pytest.mark.parametrize(
    ("package", "content", "says"),
    [
        (
            "torch",
            "raise OSError('libtorch.so: cannot open\\nshared object file')",
            "torch cannot be imported (libtorch.so",
        ),
        ("av", "import nowhere", "nowhere, which av needs, is not installed; pip install nowhere"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line(tmp_path: Path, package: str, content: str, says: str) -> None:
    (tmp_path / f"{package}.py").write_text(content)
    command = [sys.executable, "-c", BROKEN, str(tmp_path), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 2 and lines[0].startswith(f"- {says}"), done.stderr
    assert lines[1].startswith("Error: 1 packages that ssv2rt needs do not work")


def test_packages_beside_the_essential_ones_are_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_engine.py").write_text("raise ImportError('bad')")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(broken_packages(OTHERS)) == []
    assert list(broken_packages(("no_such_engine", "json"))) == [
        "no_such_engine cannot be imported (bad); pip install --force-reinstall no_such_engine"
    ]
