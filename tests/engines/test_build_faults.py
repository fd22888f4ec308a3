"""Faults while an engine is built: a full disk, no permission, no cache, killed builds, and two builds at once.

Each fault is one line, and leaves what was there before, and nothing else.
"""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.bundle import Bundle, open_bundle
from ssv2rt.engines.source import Source, source_of_run
from tests.core.test_locks import held_elsewhere
from tests.engines.conftest import clips
from tests.faults import FAULTS, largest_file

Build = Callable[..., tuple[Bundle, list[str]]]


@pytest.fixture(scope="module")
def source(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny run, exported only once."""
    exported = tmp_path_factory.mktemp("exported") / "float.onnx"
    source = source_of_run(tiny_run)
    source.export(exported)

    def export(path: Path) -> None:
        path.write_bytes(exported.read_bytes())

    return replace(source, export=export)


@pytest.fixture
def build(source: Source, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    manifest = open_manifest(tiny_set)

    def run(precision: str = "fp16", source: Source = source, **more: Any) -> tuple[Bundle, list[str]]:
        recipe = load_engine_recipe(
            precision, ("gate.clips=2", "gate.max_top1_drop=100", "gate.min_agreement=0", "calibration.clips=2")
        )
        return build_engine_from_source(source, tmp_path / "engines", recipe, "openvino", manifest, **more)

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fails_at_every_change(build: Build, precision: str, place: Path, numbers: Callable[[int], range]) -> None:
    """Builds again and again beside an engine of an earlier build, with a fault at another change each time."""
    engines, debug = place / "engines", place / "engines" / "layers"
    build(precision)
    with FAULTS.at(0, engines):
        build(precision, debug=debug)
    total = FAULTS.count
    shutil.rmtree(debug)
    assert total > 8
    before = content(engines)
    for number in numbers(total):
        with (
            FAULTS.at(number, engines),
            pytest.raises(UserError, match=r"^cannot .*: No space left on device; ") as caught,
        ):
            build(precision, debug=debug)
        assert len(str(caught.value).splitlines()) == 1 and caught.value.exit_code == 1
        shutil.rmtree(debug, ignore_errors=True)
        assert content(engines) == before and os.listdir(engines) == [precision], number
    open_bundle(engines / precision)


def test_a_fault_at_a_change_leaves_the_earlier_engine(build: Build, tmp_path: Path) -> None:
    fails_at_every_change(build, "fp16", tmp_path, lambda total: range(1, total + 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_fault_at_every_change_leaves_the_earlier_engine(build: Build, tmp_path: Path, precision: str) -> None:
    fails_at_every_change(build, precision, tmp_path, lambda total: range(1, total + 1))


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_within_each_file(
    build: Build, tmp_path: Path, precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX, ONNX Runtime and OpenVINO write by code of their own."""
    build(precision)
    engines = tmp_path / "engines"
    before = content(engines)
    shutil.rmtree(tmp_path / "cache")
    for size in sorted(
        {len(data) // 2 for data in before.values()} | {len(data) - 1 for data in before.values()} | {0}
    ):
        with largest_file(size), pytest.raises(UserError) as caught:
            build(precision)
        assert len(str(caught.value).splitlines()) == 1 and caught.value.exit_code == 1
        assert content(engines) == before and os.listdir(engines) == [precision], size
    assert "Traceback" not in capfd.readouterr().err
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    build(precision)
    runner = load_runner(open_bundle(engines / precision))
    assert runner(clips(2)).isfinite().all()


def test_a_cache_that_cannot_be_written_is_done_without(
    build: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").touch()  # a file in place of the folder
    bundle, _ = build("int8")
    assert load_runner(open_bundle(bundle.path))(clips(2)).isfinite().all()
    said = capfd.readouterr().err
    for name in ("calibration", "openvino"):
        assert said.count(f"cannot write to the cache '{tmp_path / 'cache' / name}' (Not a directory)") == 1
    assert "Traceback" not in said and os.listdir(tmp_path / "engines") == ["int8"]


def test_a_cache_without_room_is_done_without(build: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache" / "calibration"
    cache.mkdir(parents=True)
    with FAULTS.at(1, cache):
        build("int8")
    assert "cannot keep the ranges in" in capfd.readouterr().err and not list(cache.iterdir())


def test_engines_that_are_no_folder_are_one_line(build: Build, tmp_path: Path) -> None:
    (tmp_path / "engines").touch()
    with pytest.raises(UserError, match=r"^cannot write to '.*/engines': .*; use a folder that you can write to$"):
        build()


def test_leftovers_of_killed_builds_are_removed(build: Build, tmp_path: Path) -> None:
    """Not those of other precisions, which may be built just now."""
    engines = tmp_path / "engines"
    for name in (".fp16.abcdefgh.partial", ".fp16.failed.abcdefgh.partial", ".int8.abcdefgh.partial"):
        (engines / name).mkdir(parents=True)
        (engines / name / "model.onnx").touch()
    with held_elsewhere(engines / "fp16") as process, pytest.raises(UserError, match=f"^process {process.pid} on "):
        build()
    assert len(list(engines.iterdir())) == 4  # and the lock of the process that was killed
    build()
    assert sorted(os.listdir(engines)) == [".int8.abcdefgh.partial", "fp16"]


def test_of_two_builds_at_once_the_second_is_refused(build: Build, source: Source, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    made: list[Bundle] = []

    def export(path: Path) -> None:
        started.set()
        assert go_on.wait(60)
        source.export(path)

    first = threading.Thread(target=lambda: made.append(build(source=replace(source, export=export))[0]))
    first.start()
    assert started.wait(60)
    with pytest.raises(UserError, match=r"is building '.*/engines/fp16'; wait for it to end, or stop it$"):
        build()
    go_on.set()
    first.join()
    assert open_bundle(made[0].path).info == made[0].info and os.listdir(tmp_path / "engines") == ["fp16"]
