"""`ssv2rt evaluate`: data with other classes, accuracy of each class, and a row for each clip."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.listing import Listing
from ssv2rt.models.weights import load_trained
from ssv2rt.scoring.metadata import KEY
from ssv2rt.training.evaluate import evaluate as evaluate_model
from tests.cli import ssv2rt

Rows = dict[str, dict[str, str]]


def evaluate(run: Run, folder: Path, *options: object) -> tuple[dict, Rows, str]:  # type: ignore[type-arg]
    """The printed facts, the predictions by clip, and what was logged."""
    done = ssv2rt("evaluate", run.path, "--json", "--predictions", "p.csv", "--overwrite", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["video"]).stem: row for row in csv.DictReader(file)}
    return json.loads(done.stdout), rows, done.stderr


@pytest.fixture(scope="module")
def listing(tiny_set: Path) -> Listing:
    return list_clips(tiny_set)


@pytest.fixture(scope="module")
def own(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Rows]:  # type: ignore[type-arg]
    """The evaluation of all clips of the run's own data."""
    facts, rows, _ = evaluate(tiny_run, tmp_path_factory.mktemp("own"), "--split", "all")
    return facts, rows


def table(listing: Listing, file: Path, names: dict[str, str]) -> None:
    """Writes a table of the clips of some classes, under other names."""
    rows = [(str(listing.folder / clip.path), listing.labels[clip.label]) for clip in listing.clips]
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "label"), *((path, names[name]) for path, name in rows if name in names)])


def test_a_row_for_each_clip_agrees_with_the_accuracy(own: tuple[dict, Rows], listing: Listing) -> None:  # type: ignore[type-arg]
    facts, rows = own
    assert {clip: row["expected"] for clip, row in rows.items()} == {
        clip.id: listing.labels[clip.label] for clip in listing.clips
    }
    assert {row["status"] for row in rows.values()} == {"ok"} and all(int(row["frames"]) >= 10 for row in rows.values())
    right = {clip: row["label"] == row["expected"] for clip, row in rows.items()}
    assert facts["top1"] == pytest.approx(100 * sum(right.values()) / 80)
    classes = {}
    for clip, row in rows.items():
        classes.setdefault(row["expected"], []).append(right[clip])
    shares = {name: 100 * sum(hits) / len(hits) for name, hits in classes.items()}
    assert {found["label"]: found["accuracy"] for found in facts["classes"]} == pytest.approx(shares)
    assert facts["mean class accuracy"] == pytest.approx(sum(shares.values()) / 10)


def test_some_classes_in_another_order_are_matched_by_name(
    tiny_run: Run,
    own: tuple[dict, Rows],  # type: ignore[type-arg]
    listing: Listing,
    tmp_path: Path,
) -> None:
    known = sorted(listing.labels)[:4]
    assert tuple(known) != listing.labels[:4]
    table(listing, tmp_path / "t.csv", {name: name for name in known})
    facts, rows, said = evaluate(tiny_run, tmp_path, "--data", "t.csv", "--split", "all")
    assert rows == {clip: row for clip, row in own[1].items() if row["expected"] in known} and "left out" not in said
    assert facts["clips"] == len(rows)
    assert facts["top1"] == pytest.approx(100 * sum(r["label"] == r["expected"] for r in rows.values()) / len(rows))
    expected = [found for found in own[0]["classes"] if found["label"] in known]
    assert facts["classes"] == expected


def test_unknown_classes_are_left_out(tiny_run: Run, listing: Listing, tmp_path: Path) -> None:
    one, two, three = listing.labels[:3]
    table(listing, tmp_path / "t.csv", {one: one, two: two.upper(), three: f"{three} "})
    facts, rows, said = evaluate(tiny_run, tmp_path, "--data", "t.csv", "--split", "all")
    assert {row["expected"] for row in rows.values()} == {one, three} and facts["clips"] == len(rows)
    assert f"1 of the 3 classes of '{tmp_path}'" in said and f"'{two.upper()}' (did you mean '{two}'?)" in said
    table(listing, tmp_path / "t.csv", {one: "Juggling", two: "Folding"})
    done = ssv2rt("evaluate", tiny_run.path, "--data", "t.csv", cwd=tmp_path)
    assert done.returncode == 1 and "no class of" in done.stderr and len(done.stderr.splitlines()) == 1


def test_every_form_of_data_is_evaluated(
    tiny_run: Run,
    own: tuple[dict, Rows],  # type: ignore[type-arg]
    tiny_set: Path,
    listing: Listing,
    tmp_path: Path,
) -> None:
    for clip in listing.clips:
        if clip.split == "validation":
            folder = tmp_path / "folders" / listing.labels[clip.label]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_set / clip.path, folder)
    manifest = tmp_path / "m.parquet"
    assert ssv2rt("index", tiny_set, "--out", manifest, cwd=tmp_path).returncode == 0
    for data, split in (
        (tiny_set, "validation"),
        (tiny_set / "validation.json", "validation"),
        (manifest, "validation"),
        (tmp_path / "folders", "all"),
        (tiny_set / "test-answers.csv", "test"),
    ):
        _, rows, said = evaluate(tiny_run, tmp_path, "--data", data, "--split", split)
        assert ("10 validation clips of 80" in said and "--split all" in said) == (data in (tiny_set, manifest))
        ids = {clip.id for clip in listing.clips if clip.split == ("test" if split == "test" else "validation")}
        for row in (*rows.values(), *own[1].values()):
            row["video"] = Path(row["video"]).name
        assert rows == {clip: own[1][clip] for clip in ids}


def test_unusable_clips_have_error_rows_and_the_table_says_what_it_is(
    tiny_run: Run, tiny_set: Path, listing: Listing, tmp_path: Path
) -> None:
    one = listing.labels[0]
    folder = tmp_path / "data" / one
    folder.mkdir(parents=True)
    for clip in [clip for clip in listing.clips if clip.label == 0][:2]:
        shutil.copy(tiny_set / clip.path, folder)
    (folder / "bad.mp4").write_bytes(b"no video\n" * 100)
    call = (
        "evaluate",
        tiny_run.path,
        "--data",
        "data",
        "--split",
        "all",
        "--views",
        "1x3",
        "--predictions",
        "p.parquet",
    )
    done = ssv2rt(*call, cwd=tmp_path)
    assert done.returncode == 1 and "1 of 3 clips cannot be used" in done.stderr
    recipe = tiny_run.path.parent / "copy" / "recipe.toml"
    shutil.copytree(tiny_run.path, recipe.parent)
    recipe.write_text(recipe.read_text().replace("max_bad = 0.01", "max_bad = 1.0"))
    done = ssv2rt(call[0], recipe.parent, *call[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:][0].split() == ["accuracy", "clips", "class"]
    table = pq.read_table(tmp_path / "p.parquet")
    rows = {Path(row["video"]).name: row for row in table.to_pylist()}
    assert rows["bad.mp4"]["status"] == "error: unreadable" and rows["bad.mp4"]["expected"] == one and len(rows) == 3
    found = json.loads(table.schema.metadata[KEY])
    assert tuple(found["labels"]) == listing.labels and found["clip"]["views"] == [1, 3]
    assert found["engines"][0]["backend"] == "pytorch" and len(found["weights_sha256"]) == 64
    done = ssv2rt(*call, cwd=tmp_path)
    assert done.returncode == 2 and "--predictions p.parquet exists" in done.stderr


def test_clips_may_be_read_in_another_way_than_in_training(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    """Such as at 256 pixels after training at 224, as published networks are evaluated. The model card says how."""
    shutil.copytree(tiny_run.path, tmp_path / "run", symlinks=True)
    run = Run(tmp_path / "run")
    settings = ("--set", "clip.size=48", "--set", "clip.frames=6", "--views", "1x3", "--report", "r.html")
    facts, rows, _ = evaluate(run, tmp_path, *settings)
    trained = load_trained(run)
    changes = {"size": 48, "frames": 6, "views": (1, 3)}
    recipe = trained.recipe.model_copy(update={"clip": trained.recipe.clip.model_copy(update=changes)})
    split = open_manifest(tiny_set).split("validation")
    expected = evaluate_model(trained.model, split, recipe, device=torch.device("cpu"), precision="fp32")
    as_trained = evaluate_model(trained.model, split, trained.recipe, device=torch.device("cpu"), precision="fp32")
    assert facts["loss"] == pytest.approx(expected.loss, rel=1e-5) != pytest.approx(as_trained.loss, rel=1e-5)
    assert len(rows) == 10 and (tmp_path / "r.html").is_file()
    card = ssv2rt("card", run.path).stdout
    assert "| 1x3, clip.size=48, clip.frames=6 |" in card, card


@pytest.mark.parametrize("setting", ["model.width=8", "train.epochs=3", "augment.color=0"])
def test_settings_of_training_are_none_of_evaluation(setting: str, tiny_run: Run) -> None:
    done = ssv2rt("evaluate", tiny_run.path, "--set", setting)
    assert done.returncode == 2 and f"setting {setting}: evaluation takes clip.*, data.*" in done.stderr
