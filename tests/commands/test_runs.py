"""`ssv2rt runs`: the table of runs, and removing some."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.locks import exclusive
from ssv2rt.core.run_folders import Run
from tests.cli import ssv2rt


@pytest.fixture
def place(tmp_path: Path, tiny_run: Run) -> Path:
    """The runs `old`, `new` (the latest, with an engine), and `begun` without a complete epoch; and an engine alone."""
    for number, name in enumerate(("old", "new")):
        others = shutil.ignore_patterns("engines", "evaluations.jsonl")  # what other tests have made
        shutil.copytree(tiny_run.path, tmp_path / "runs" / name, symlinks=True, ignore=others)
        for path in (*(tmp_path / "runs" / name).rglob("*"), tmp_path / "runs" / name):
            os.utime(path, (10**9 + number, 10**9 + number), follow_symlinks=False)
    for engine in ("new/engines/int8-openvino", "new/engines/fp16-openvino.failed", "theirs/engines/fp32-openvino"):
        (tmp_path / "runs" / engine).mkdir(parents=True)
        (tmp_path / "runs" / engine / "bundle.json").touch()
    (tmp_path / "runs" / "begun").mkdir()
    shutil.copyfile(tiny_run.recipe_file, tmp_path / "runs" / "begun" / "recipe.toml")
    (tmp_path / "runs" / "latest").symlink_to("new")
    return tmp_path


def test_the_table_has_a_row_for_each_run(place: Path, tiny_run: Run) -> None:
    done = ssv2rt("runs", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows)[-1] == "old" and rows.keys() == {"new", "old", "begun", "theirs"}
    logged = json.loads(tiny_run.metrics_file.read_text().splitlines()[-1])["validation"]["top1"]
    assert rows["old"]["top1"] == rows["new"]["top1"] == logged and rows["begun"]["top1"] is None
    assert (rows["old"]["network"], rows["old"]["epochs"], rows["old"]["planned_epochs"]) == ("resnet3d18", 1, 1)
    assert rows["old"]["data"] == tiny_run.recipe().data.root and rows["old"]["when"] == 10**9
    assert rows["new"]["engines"] == ["int8-openvino"] and rows["new"]["latest"] and not rows["old"]["latest"]
    assert rows["theirs"] | {"when": 0} == {
        "name": "theirs", "network": "", "data": "", "epochs": 0, "planned_epochs": 0, "top1": None,
        "engines": ["fp32-openvino"], "when": 0, "latest": False,
    }  # fmt: skip
    done = ssv2rt("runs", cwd=place)
    lines = done.stdout.splitlines()
    assert done.stderr == "* is taken where no run is named\n"
    assert lines[0].split() == ["name", "network", "data", "epochs", "top-1", "engines", "when"]
    assert any(line.startswith("new *") and "1/1" in line and "int8-openvino" in line for line in lines)


def test_an_engine_that_is_built_later_does_not_change_when_a_run_was_trained(place: Path) -> None:
    shutil.copytree(place / "runs/new/engines/int8-openvino", place / "runs/old/engines/int8-openvino")
    rows = {row["name"]: row for row in json.loads(ssv2rt("runs", "--json", cwd=place).stdout)}
    assert rows["old"]["engines"] == ["int8-openvino"] and rows["old"]["when"] == 10**9


def test_without_runs_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = ssv2rt("runs", cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout and "ssv2rt train" in done.stderr
    assert ssv2rt("runs", "--json", cwd=tmp_path).stdout == "[]\n"


def test_a_removed_run_is_gone_and_latest_points_to_the_next(place: Path) -> None:
    asked = ssv2rt("runs", "rm", "new", cwd=place)
    assert asked.returncode == 2 and "add --yes" in asked.stderr and (place / "runs" / "new").is_dir()
    assert ssv2rt("runs", "rm", "latest", "new", "--yes", cwd=place).returncode == 0
    assert os.readlink(place / "runs" / "latest") == "old"
    assert ssv2rt("runs", "rm", "old", "begun", "theirs", "--yes", cwd=place).returncode == 0
    assert not list((place / "runs").iterdir())
    gone = ssv2rt("runs", "rm", "old", "--yes", cwd=place)
    assert gone.returncode == 1 and "no run 'old'" in gone.stderr


def test_a_run_in_use_is_not_removed(place: Path) -> None:
    run = place / "runs" / "new"
    for path, what in ((run, "training"), (run / "engines" / "int8", "building")):
        with exclusive(path, what):
            refused = ssv2rt("runs", "rm", "new", "--yes", cwd=place)
        assert refused.returncode == 1 and f"process {os.getpid()} on" in refused.stderr
        assert f"is {what} '" in refused.stderr and run.is_dir()
