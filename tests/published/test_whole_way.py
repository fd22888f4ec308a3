"""Every published network on its whole way: from a file as its publisher saves it to predictions of its engines."""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ssv2rt.core.run_folders import find_run
from ssv2rt.engines.find import engines_of
from ssv2rt.published.catalog import PUBLISHED, class_names
from tests.cli import ssv2rt
from tests.published.as_published import save_as_published

CLIPS = 4
ANY = ("--set", "gate.min_agreement=0", "--set", "gate.max_top1_drop=100", "--set", "gate.clips=4")
"""The gate passes networks with random weights, whose classes are nearly alike."""


def write_table(file: Path, videos: list[Path], labels: tuple[str, ...]) -> None:
    with file.open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("path", "label", "split"))
        for number, video in enumerate(videos):
            split = "train" if number < CLIPS else "validation"
            rows.writerow((video, labels[number % CLIPS * 7], split))


def read(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a table of predictions, by video."""
    with file.open(newline="") as table:
        return {row["video"]: row for row in csv.DictReader(table)}


def succeeds(*words: object) -> str:
    done = ssv2rt(*words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_from_a_published_file_to_predictions(
    name: str, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PUBLISHED[name]
    small = entry.clip.model_copy(update={"frames": 8, "size": 64})  # as published, a view takes seconds to minutes
    monkeypatch.setitem(PUBLISHED, name, replace(entry, clip=small))
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    videos = sorted((tiny_set / "videos").iterdir())[: 2 * CLIPS]
    write_table(tmp_path / "clips.csv", videos, class_names(entry.classes))
    succeeds("import", save_as_published(entry, tmp_path), "--as", name, "--name", "it")
    run = find_run()
    assert run.name == "it" and run.recipe().clip == small
    recipe = run.recipe_file.read_text()
    assert (
        'precision = "auto"' in recipe
    )  # bf16 where the CPU has it: of random weights in 101 layers, 0.1 of a probability
    run.recipe_file.write_text(recipe.replace('precision = "auto"', 'precision = "fp32"'))
    found = json.loads(succeeds("evaluate", "--data", "clips.csv", "--predictions", "pytorch.csv", "--json"))
    assert found["clips"] == CLIPS and found["bad"] == 0
    succeeds("build-engine", "--fp32", "--fp16", "--int8", "--backend", "openvino", "--data", "clips.csv", *ANY)
    pytorch, probabilities = read(Path("pytorch.csv")), {}
    for precision in ("fp32", "fp16", "int8"):
        out = Path(f"{precision}.csv")
        succeeds("score", *videos[CLIPS:], "--engine", precision, "--out", out, "--top-k", 1)
        rows = read(out)
        assert rows.keys() == pytorch.keys() and {row["status"] for row in rows.values()} == {"ok"}
        probabilities[precision] = [float(rows[video]["probability"]) for video in sorted(rows)]
    expected = [float(pytorch[video]["probability"]) for video in sorted(pytorch)]
    assert probabilities["fp32"] == pytest.approx(expected, abs=1e-3)
    assert probabilities["fp16"] == pytest.approx(probabilities["fp32"], abs=0.02)
    assert probabilities["int8"] == pytest.approx(probabilities["fp32"], abs=0.2)
    if importlib.util.find_spec("tensorrt_rtx"):  # it builds without a GPU, and is compared through its graph
        rtx = ("--backend", "tensorrt-rtx", "--target", "sm89")
        built = json.loads(succeeds("build-engine", "--fp16", "--int8", *rtx, "--data", "clips.csv", *ANY, "--json"))
        convolutions = [engine["settings"]["layers"]["convolutions"] for engine in built]
        assert "FP16" in convolutions[0] and "INT8" in convolutions[1], convolutions
    info = next(engine.info for engine in engines_of(run) if engine.name.startswith("int8"))
    assert info and info.clip == small and info.labels == class_names(entry.classes)
