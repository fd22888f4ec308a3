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
    assert header["license"] == "unknown" and header["pipeline_tag"] == "video-classification"
    assert "datasets" not in header and "resnet3d18" in header["tags"]  # `tiny` is no data set of Hugging Face
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "tiny", "type": "custom", "split": "validation"}
    assert [metric["name"] for metric in result["metrics"]] == ["Top-1 accuracy", "Top-5 accuracy"]
    assert "From random weights, for 1 epoch. These are the weights after epoch 1, the best in validation" in text
    assert "| optimizer | sgd |" in text and "mixup" not in text and "| crop_scale | 0.4 to 1 |" in text
    assert "trained on tiny, with 10 classes" in text and "ssv2rt import weights.safetensors --name mine" in text
    assert "- 4 frames of 32x32 pixels, RGB, as uint8 (N, 4, 32, 32, 3)" in text
    assert "ssv2rt build-engine mine --fp16" in text
    lines = text.splitlines()
    first = lines.index(f"0. {labels[0]}")
    assert lines[first : first + 10] == [f"{number}. {name}" for number, name in enumerate(labels)]


def test_a_run_that_is_not_finished_says_so(run: Run) -> None:
    run.recipe_file.write_text(run.recipe_file.read_text().replace("epochs = 1\n", "epochs = 16\n", 1))
    assert "for 1 of 16 epochs so far. These are the weights after epoch 1" in card_of("mine")[1]


def test_the_license_of_own_weights_is_given(run: Run) -> None:
    header, text = card_of("mine", "--license", "CC-BY-NC-4.0")
    assert header["license"] == "cc-by-nc-4.0" and "## License\n\ncc-by-nc-4.0\n" in text
    assert "`ssv2rt card --license apache-2.0` writes one" in card_of("mine")[1]
    for license in ("", "my license", "a\nb", "-x", "mit:"):
        said = ssv2rt("card", "mine", "--license", license)
        assert said.returncode == 2 and "give an identifier such as apache-2.0" in said.stderr
        assert len(said.stderr.splitlines()) == 1
    recipe = run.recipe_file.read_text()
    for init, origin in (
        ("tsm-r50-8f-ssv2", "tsm-r50-8f-ssv2 of MIT HAN Lab, MIT"),
        ("theirs", "r3d_18 of torchvision"),
    ):
        run.recipe_file.write_text(recipe.replace('init = ""', f'init = "{init}"'))
        if init == "theirs":
            imported("theirs", published=True)
        _, text = card_of("mine", "--license", "mit")
        assert f"with a license of their own: {origin}" in text and f"From the weights of `{init}`, for 1 epoch" in text


def test_what_evaluate_measures_is_in_the_card(run: Run, tiny_set: Path) -> None:
    for split in ("train", "test", "test", "validation"):
        done = ssv2rt("evaluate", "mine", "--split", split, "--data", tiny_set, "--views", "1x2")
        assert done.returncode == 0, done
    done = ssv2rt("evaluate", "mine")  # the same clips and views as in training
    header, text = card_of("mine")
    results = header["model-index"][0]["results"]
    assert [result["dataset"]["split"] for result in results] == ["validation", "validation", "test"]
    assert {result["dataset"]["name"] for result in results} == {"tiny"}
    top1 = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("top1 "))
    assert f"{results[0]['metrics'][0]['value']:.2f}" == top1
    names = [result["metrics"][0]["name"] for result in results]
    assert names == ["Top-1 accuracy (views 1x1)", "Top-1 accuracy (views 1x2)", "Top-1 accuracy"]
    rows = [line for line in text.splitlines() if line.startswith("| tiny |")]
    assert len(rows) == 3 and " | 1x2 | " in rows[2] and "| tiny | test |" in rows[2] and "in training" not in text
    assert (
        str(tiny_set) not in text
        and "tells nothing about new videos: top-1 " in text
        and "clips of tiny (train).\n" in text
    )
    with run.results_file.open("a") as file:
        file.write('{"half a')
    said = ssv2rt("card", "mine")
    assert said.returncode == 0 and "line 6: not a result" in said.stderr and said.stdout.endswith(text)


def imported(name: str, published: bool) -> None:
    entry = PUBLISHED["r3d_18"]
    facts = {key: getattr(entry, key) for key in Publication.__dataclass_fields__ if key != "views"}
    publication = Publication(views=(5, 1), **facts) if published else None
    source = RunSource(file="w.pth", sha256="0" * 64, imported="2026-01-31", network="r3d_18", published=publication)
    recipe = Recipe(model=Model(name="r3d_18", width=4), clip=Clip(frames=4, size=32))
    make_run(build_model(recipe.model, 3), recipe, ("a|b", "<b>c</b>", "*&lt;*"), source, name)


def test_card_of_an_imported_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    imported("its name: [x]", published=True)
    header, text = card_of()
    assert header["license"] == "bsd-3-clause" and header["datasets"] == ["kinetics-400"]
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "Kinetics-400", "type": "kinetics-400", "split": "validation"}
    assert result["source"] == {"name": "torchvision", "url": PUBLISHED["r3d_18"].about}
    assert [metric["value"] for metric in result["metrics"]] == [63.2, 83.48]
    assert "| Kinetics-400 | validation | | 5x1 | 63.20 | 83.48 | | by torchvision |" in text
    said = ssv2rt("card", "--license", "mit")
    assert (
        said.returncode == 2 and "are published by torchvision under BSD-3-Clause; leave --license out" in said.stderr
    )
    assert "ssv2rt import r3d_18 --name 'its name: [x]'" in text and "## Training" not in text
    assert "# its name: \\[x\\]" in text and "0. a\\|b\n1. \\<b\\>c\\</b\\>\n2. \\*\\&lt;\\*\n" in text
    imported("other", published=False)
    header, text = card_of()
    assert header["license"] == "unknown" and "datasets" not in header and "metrics" not in header
    assert "model-index" not in header and "Not measured." in text
    assert "Who published this file, and what it was trained on, is not known." in text


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
