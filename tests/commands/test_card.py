"""`ssv2rt card`: what a model card says of a trained and of an imported run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ssv2rt.core.recipes import Clip, Model, Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.published.catalog import PUBLISHED
from ssv2rt.published.import_run import Publication, RunSource, make_run
from tests.cli import ssv2rt


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A trained run that a test may change, and the working directory that it is in."""
    others = shutil.ignore_patterns("evaluations.jsonl")  # what other tests have measured
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "mine", symlinks=True, ignore=others)
    monkeypatch.chdir(tmp_path)
    return Run(Path("runs") / "mine")


def card_of(*words: object) -> tuple[dict[str, Any], str]:
    """The header and the text of a card."""
    yaml = pytest.importorskip("yaml")
    done = ssv2rt("card", *words)
    assert done.returncode == 0, done
    begin, header, text = done.stdout.split("---\n", 2)
    assert not begin
    return yaml.safe_load(header), text


def test_card_of_a_trained_run(run: Run) -> None:
    header, text = card_of("mine")
    labels = load_trained(run).labels
    assert "license" not in header and header["pipeline_tag"] == "video-classification"
    assert header["datasets"] == ["tiny"] and "resnet3d18" in header["tags"]
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "tiny", "type": "tiny", "split": "validation"}
    assert [metric["name"] for metric in result["metrics"]] == ["Top-1 accuracy", "Top-5 accuracy"]
    assert "1 of 1 epochs, from random weights" in text and "| optimizer | sgd |" in text
    assert "- 4 frames of 32x32 pixels, RGB, as uint8 (N, 4, 32, 32, 3)" in text
    assert "ssv2rt build-engine mine --fp16" in text and "ssv2rt import" not in text
    lines = text.splitlines()
    first = lines.index(f"0. {labels[0]}")
    assert lines[first : first + 10] == [f"{number}. {name}" for number, name in enumerate(labels)]


def test_what_evaluate_measures_is_in_the_card(run: Run, tiny_set: Path) -> None:
    for split in ("train", "test"):
        done = ssv2rt("evaluate", "mine", "--split", split, "--data", tiny_set, "--views", "1x2")
        assert done.returncode == 0, done
    header, text = card_of("mine")
    found = [result["dataset"]["split"] for result in header["model-index"][0]["results"]]
    assert found == ["test", "train", "validation"]
    top1 = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("top1 "))
    assert f"{header['model-index'][0]['results'][0]['metrics'][0]['value']:.2f}" == top1
    assert "| tiny, test, measured on 2" in text and " | 1x2 | " in text and str(tiny_set) not in text
    with run.results_file.open("a") as file:
        file.write('{"half a')
    said = ssv2rt("card", "mine")
    assert said.returncode == 0 and "line 3: not a result" in said.stderr and said.stdout.endswith(text)


def imported(name: str, published: bool) -> None:
    entry = PUBLISHED["r3d_18"]
    facts = {key: getattr(entry, key) for key in Publication.__dataclass_fields__ if key != "views"}
    publication = Publication(views=(5, 1), **facts) if published else None
    source = RunSource(file="w.pth", sha256="0" * 64, imported="2026-01-31", network="r3d_18", published=publication)
    recipe = Recipe(model=Model(name="r3d_18", width=4), clip=Clip(frames=4, size=32))
    make_run(build_model(recipe.model, 3), recipe, ("a|b", "<b>c</b>", "*d*"), source, name)


def test_card_of_an_imported_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    imported("its name: [x]", published=True)
    header, text = card_of()
    assert header["license"] == "bsd-3-clause" and header["datasets"] == ["kinetics-400"] and "metrics" not in header
    assert "| Kinetics-400, validation, as published | | 5x1 | 63.20 | 83.48 | |" in text
    assert "ssv2rt import r3d_18 --name 'its name: [x]'" in text and "## Training" not in text
    assert "# its name: \\[x\\]" in text and "0. a\\|b\n1. \\<b\\>c\\</b\\>\n2. \\*d\\*\n" in text
    imported("other", published=False)
    header, text = card_of()
    assert "license" not in header and "datasets" not in header and "Not measured." in text
    assert "The publisher and the license of this file are not known." in text


def test_card_goes_to_a_file(run: Run) -> None:
    assert ssv2rt("card", "mine", "--out", "README.md").returncode == 0
    assert Path("README.md").read_text() == ssv2rt("card", "mine").stdout
    said = ssv2rt("card", "mine", "--out", "README.md")
    assert said.returncode == 2 and "--out README.md exists; choose another name, or add --overwrite" in said.stderr
    assert ssv2rt("card", "mine", "--out", "README.md", "--overwrite").returncode == 0
    for out in ("none/README.md", "runs"):
        said = ssv2rt("card", "mine", "--out", out, "--overwrite")
        assert said.returncode in (1, 2) and len(said.stderr.splitlines()) == 1 and "Traceback" not in said.stderr


def test_a_damaged_source_is_one_line(run: Run) -> None:
    for content in ("", "[]", "{", '{"file": 3}'):
        run.source_file.write_text(content)
        said = ssv2rt("card", "mine")
        assert said.returncode == 1 and len(said.stderr.splitlines()) == 1
        assert "does not say where the weights are from" in said.stderr
