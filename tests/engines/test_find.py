"""Engines of one run stand side by side, and each command takes one that runs here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.run_folders import Run
from ssv2rt.engines.bundle import Bundle, bundle_name, open_bundle
from ssv2rt.engines.find import engine_named, engines_of, find_engine
from ssv2rt.engines.request import BuildRequest, build_as_requested, requests_for
from tests.cli import ssv2rt


def engine(run: Run, of: Bundle, name: str, **changes: object) -> Path:
    """Adds an engine to a run: another one with some entries of its bundle.json changed. It is the newest."""
    folder = shutil.copytree(of.path, run.engines / name)
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture
def run(tiny_bundle: Bundle, tmp_path: Path) -> Run:
    """A run with three engines, of which the first two run here. The first has an older version's name."""
    made = Run(tmp_path / "runs" / "one")
    made.engines.mkdir(parents=True)
    (made.path / "recipe.toml").touch()
    engine(made, tiny_bundle, "fp16")
    engine(made, tiny_bundle, "bf16-openvino", precision="bf16")
    engine(made, tiny_bundle, "fp16-tensorrt-sm90", backend="tensorrt", target="sm90")
    engine(made, tiny_bundle, "int8-openvino.failed", precision="int8")
    (tmp_path / "runs" / "latest").symlink_to("one")
    return made


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("AMD EPYC", "int8-openvino"),
        ("sm90", "int8-openvino-sm90"),
        ("sm80,sm89", "int8-openvino-sm80-sm89"),
        ("sm80+", "int8-openvino-sm80+"),
    ],
)
def test_names_of_folders(target: str, name: str) -> None:
    assert bundle_name("int8", "openvino", target) == name


def test_the_newest_engine_that_runs_here_is_taken(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert [found.name for found in engines_of(run)] == ["fp16-tensorrt-sm90", "bf16-openvino", "fp16"]
    assert find_engine(run).path.name == "bf16-openvino"
    assert (
        "taking the engine 'bf16-openvino', since 'fp16-tensorrt-sm90' needs tensorrt, and " in capfd.readouterr().err
    )
    assert find_engine(run, "fp16").path.name == "fp16"
    shutil.rmtree(run.engines / "bf16-openvino")
    shutil.rmtree(run.engines / "fp16")
    with pytest.raises(
        UserError, match=r"no engine of run '.*one' runs here: 'fp16-tensorrt-sm90' needs tensorrt, and "
    ):
        find_engine(run)


def test_engines_by_name_precision_and_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parents[1])
    for name, folder in (
        ("fp16-tensorrt-sm90", "fp16-tensorrt-sm90"),  # named, and so taken; loading it says what is missing
        ("bf16", "bf16-openvino"),
        ("runs/one/engines/bf16-openvino", "bf16-openvino"),
        ("runs/latest/engines/bf16", "bf16-openvino"),
        ("runs/one/engines/fp16", "fp16"),
    ):
        assert engine_named(name).path.name == folder
    assert engine_named("bf16", "one").path.name == "bf16-openvino"
    for name, says in (
        ("fp61", "has no engine 'fp61'; did you mean 'fp16'"),
        ("int8", "no engine 'int8'"),
        ("no/such/place", "no engine bundle in 'no/such/place'"),
    ):
        with pytest.raises(UserError, match=says):
            engine_named(name)
    other = Run(run.path.with_name("other"))
    shutil.copytree(run.engines / "bf16-openvino", other.engines / "int8-openvino")
    with pytest.raises(UserError, match="no engine 'int8'.*; other runs that have one: other; make one with"):
        engine_named("int8")
    shutil.rmtree(run.engines)
    with pytest.raises(UserError, match="no engine yet; other runs that have one: other; make one with"):
        engine_named(None)
    shutil.rmtree(other.path)
    with pytest.raises(UserError, match="no engine yet; make one with"):
        engine_named(None)


def test_other_files_in_a_bundle_are_let_be(run: Run, tiny_bundle: Bundle) -> None:
    folder = run.engines / "fp16"
    (folder / "notes.txt").write_text("fast")
    (folder / ".DS_Store").touch()
    assert open_bundle(folder).info == tiny_bundle.info
    (folder / "engine.cache").touch()  # a backend may read what is named like the engine
    with pytest.raises(UserError, match="no hash for 'engine.cache'"):
        open_bundle(folder)


def test_score_and_inspect_choose_and_list(run: Run, tiny_set: Path) -> None:
    here = run.path.parents[1]
    video = min((tiny_set / "videos").iterdir())
    done = ssv2rt("score", video, "--out", "p.csv", "--json", cwd=here)
    assert done.returncode == 0 and json.loads(done.stdout)["engine"] == "runs/one/engines/bf16-openvino", done.stderr
    done = ssv2rt("score", video, "--out", "p2.csv", "--json", "--engine", "fp16", cwd=here)
    assert done.returncode == 0 and json.loads(done.stdout)["engine"] == "runs/one/engines/fp16", done.stderr
    facts = json.loads(ssv2rt("inspect", "one", "--json", cwd=here).stdout)
    assert [entry["name"] for entry in facts["engines"]] == ["fp16-tensorrt-sm90", "bf16-openvino", "fp16"]
    assert facts["bundle"]["path"] == "runs/one/engines/bf16-openvino"
    assert "fp16-tensorrt-sm90" in ssv2rt("inspect", cwd=here).stdout


def test_options_of_no_use_are_refused() -> None:
    for backend in ("openvino", "aotinductor"):
        with pytest.raises(UsageError, match=r"^--target sm89: .*; leave it out, or take --backend tensorrt-rtx$"):
            build_as_requested(BuildRequest(precision="fp16", backend=backend, targets=("sm89",)))


def test_each_precision_that_is_named_is_built(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(tiny_run.path, tmp_path / "runs" / "two", symlinks=True))
    shutil.rmtree(copy.engines, ignore_errors=True)
    done = ssv2rt(
        *("build-engine", "two", "--fp16", "--int8", "--backend", "openvino", "--data", tiny_set, "--json"),
        *("--set", "gate.clips=6", "--set", "calibration.clips=10", "--max-drop", "100"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    fp16, int8 = json.loads(done.stdout)
    assert (fp16["precision"], int8["precision"]) == ("fp16", "int8")
    assert "--max-drop" in int8["rebuild"] and "--max-drop" not in fp16["rebuild"]
    assert sorted(found.name for found in engines_of(copy)) == ["fp16-openvino", "int8-openvino"]
    flags = dict.fromkeys(("fp32", "bf16", "fp16", "int8", "fp8"), False)
    assert [request.precision for request in requests_for(**flags, max_drop=None)] == [None]


def test_a_damaged_description_does_not_hide_other_engines(run: Run) -> None:
    (run.engines / "bf16-openvino" / "bundle.json").write_text("{")
    assert find_engine(run).path.name == "fp16"
    assert "has a damaged bundle.json" in [found.cannot_run for found in engines_of(run)]


def test_an_engine_of_earlier_weights_is_named(
    tiny_run: Run, tiny_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after `train --resume`, which moves the best checkpoint."""
    run = Run(shutil.copytree(tiny_run.path, tmp_path / "runs" / "more", symlinks=True))
    assert find_engine(run, tiny_bundle.path.name).info == tiny_bundle.info
    assert "earlier weights" not in capfd.readouterr().err
    with (run.checkpoints / "best" / "weights.safetensors").open("ab") as file:
        file.write(b"\0")
    find_engine(run, "fp16")
    assert "was built from earlier weights than the best checkpoint of run" in capfd.readouterr().err
