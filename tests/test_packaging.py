"""The wheel: installed in an empty environment, it does what the repository does."""

import csv
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return next(folder.glob("*.whl"))


def test_recipes_and_class_names_travel_with_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("pipelines", "engines"):
        for recipe in (REPOSITORY / kind).glob("*.toml"):
            assert f"ssv2rt/shipped/{kind}/{recipe.name}" in names
    for classes in ("ssv2", "kinetics400"):
        assert f"ssv2rt/published/labels/{classes}.txt" in names
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.slow
def test_the_three_commands_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv, place = tmp_path / "venv", tmp_path / "place"
    place.mkdir()
    constraints = REPOSITORY / "scripts" / "constraints.txt"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    for what in (torch, f"{wheel}"):
        command = [venv / "bin" / "pip", "install", "--quiet", "-c", constraints, what]
        subprocess.run(list(map(str, command)), check=True)
    for command in ("train", "build-engine --fp16", "score videos/ --out preds.csv"):
        subprocess.run([str(venv / "bin" / "ssv2rt"), *command.split()], check=True, cwd=place)
    answers = dict(line.split(";") for line in (place / "videos" / "test-answers.csv").read_text().splitlines())
    with (place / "preds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(answers) == 200
    assert sum(row["label"] == answers[Path(row["video"]).stem] for row in rows) / len(rows) >= 0.9
