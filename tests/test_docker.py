"""The Dockerfile, read: what it copies is there and reaches the builder, and what it renames and pins is really in the files.

No image is built here; that takes a Docker engine and NVIDIA's base image.
"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions and what follows them, continued lines joined."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def told(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [what for name, what in steps if name == instruction]


def test_what_is_copied_is_there_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    sources = {source for what in told(steps, "COPY") for source in shlex.split(what)[:-1]}
    assert {"pyproject.toml", "README.md", "ssv2rt", "pipelines", "engines", "scripts", "tests"} <= sources
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, source


def test_the_package_is_built_of_what_is_copied_before_it(steps: list[tuple[str, str]]) -> None:
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = built["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], built["project"]["readme"], "pyproject.toml"}
    copied: set[str] = set()
    for name, what in steps:
        if name == "COPY":
            copied |= set(shlex.split(what)[:-1])
        elif name == "RUN" and re.search(r"pip install -c \S+ \.(\s|$)", what):
            assert wanted <= copied
            return
    pytest.fail("no step installs the package")


def test_what_is_renamed_and_pinned_is_in_the_files(steps: list[tuple[str, str]]) -> None:
    runs = " ".join(told(steps, "RUN"))
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    pins = (REPOSITORY / "scripts" / "constraints.txt").read_text(encoding="utf-8")
    assert (
        "s/nvidia-dali-cuda120/" in runs and '"nvidia-dali-cuda120>=' in project and "\nnvidia-dali-cuda120==" in pins
    )
    assert len(re.findall("^torch==", pins, re.MULTILINE)) == 1
    (range_,) = re.findall(r'"tensorrt(>=[^"]+)"', project)
    assert f"tensorrt-cu${{CUDA_MAJOR}}{range_}" in runs


def test_it_asks_for_nvdec_and_is_the_command(steps: list[tuple[str, str]]) -> None:
    (capabilities,) = re.findall(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", " ".join(told(steps, "ENV")))
    assert set(capabilities.split(",")) == {"compute", "video", "utility"}
    assert told(steps, "ENTRYPOINT") == ['["ssv2rt"]']
    (base,) = told(steps, "FROM")
    assert re.fullmatch(r"nvidia/cuda:\$\{CUDA\}-runtime-ubuntu24\.04", base)
