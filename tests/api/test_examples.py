"""Every example runs as it is, in a folder with a run."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssv2rt.core.run_folders import Run
from ssv2rt.engines.bundle import Bundle
from tests.conftest import TINY_SETTINGS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def place(tiny_run: Run, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/tiny`, which has an engine."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_run.path, folder / "runs" / "tiny", symlinks=True)
    Run(folder / "runs" / "tiny").make_latest()
    return folder


def example(place: Path, name: str, *arguments: object, cache: Path | None = None) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=place,
        env=os.environ | ({"SSV2RT_CACHE": str(cache)} if cache else {}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_all_examples_are_short_and_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 40 for name in names)
    assert all(f'"{name}"' in Path(__file__).read_text() for name in names)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_wrong_arguments_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    usage = f"usage: python {name} "
    assert str(ended.value).startswith(usage) and usage.removeprefix("usage: ") in (EXAMPLES / name).read_text()[:150]


def test_score_a_folder(place: Path, tiny_set: Path) -> None:
    first, *lines = example(place, "score_a_folder.py", tiny_set / "videos")
    assert first.startswith("<ssv2rt.Model runs/tiny: resnet3d18, fp16 by openvino") and len(lines) == 80


def test_nearest_neighbors(place: Path, tiny_set: Path) -> None:
    query = min((tiny_set / "videos").iterdir())
    lines = example(place, "nearest_neighbors.py", query, tiny_set / "videos")
    assert len(lines) == 5 and lines[0] == f"1.000 {query}"


def test_windows_of_a_video(place: Path, tiny_set: Path) -> None:
    (line, *_) = example(place, "windows_of_a_video.py", min((tiny_set / "videos").iterdir()))
    assert line.startswith("     0.0 s  ") and line.endswith("%")


def test_own_data(place: Path, tiny_set: Path) -> None:
    lines = example(place, "own_data.py", tiny_set, *TINY_SETTINGS)
    assert lines[0].startswith("80 clips of 10 classes: ")
    assert lines[1].startswith("top-1 ") and lines[-1].startswith("engine: runs/")


def test_settings_are_texts_or_a_mapping() -> None:
    from ssv2rt.api.jobs import overrides

    assert overrides("train.epochs=1") == overrides(["train.epochs=1"]) == overrides({"train.epochs": 1})


def test_onnx_without_ssv2rt(place: Path, tiny_set: Path) -> None:
    """It prints what an fp32 engine says."""
    import ssv2rt

    run = place / "runs" / "tiny"
    engine = ssv2rt.build_engine(run, "fp32", data=tiny_set, settings={"gate.clips": 4})
    video = min((tiny_set / "videos").iterdir())
    expected = next(ssv2rt.load(engine.path).predict(video))
    (line,) = example(place, "onnx_without_ssv2rt.py", engine.path, video)
    label, _, probability = line.rpartition(" ")
    assert label == expected.label and float(probability) == pytest.approx(expected.probability, abs=1e-4)


@pytest.mark.slow
def test_published_network(place: Path, tiny_set: Path, tmp_path: Path) -> None:
    """With random weights in the cache, in place of the publisher's."""
    import torch

    from ssv2rt.models.registry import build_model
    from ssv2rt.published.catalog import PUBLISHED

    entry = PUBLISHED["slow-r50-ssv2"]
    (tmp_path / "weights").mkdir()
    torch.save(build_model(entry.model, 174).state_dict(), tmp_path / "weights" / entry.file)
    video = min((tiny_set / "videos").iterdir())
    first, line = example(place, "published_network.py", entry.name, video, cache=tmp_path)
    assert first.startswith("<ssv2rt.Model slow-r50-ssv2: slow-r50, fp32 by pytorch, 174 classes")
    assert line.startswith(f"{video} ok [(")
