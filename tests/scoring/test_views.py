"""Views of the published rules, averaged: evaluation, an engine and the network itself agree."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssv2rt.core.recipe_files import dump_recipe, load_recipe
from ssv2rt.core.recipes import Clip, ClipReading, Data, with_views
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.bundle import INFO, open_bundle
from ssv2rt.engines.onnx_source import source_of_onnx
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import WEIGHTS, load_trained, save_weights
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest
from ssv2rt.report.contact_sheet import video_rows
from ssv2rt.scoring.metadata import metadata_file
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS
from tests.engines.onnx_graphs import ending_in

CLIP = {"clip.sampling": "tsm", "clip.views": "[2,3]", "clip.average": "logits"}


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with random weights, whose recipe has the clip settings of a published TSM."""
    settings = [*TINY_SETTINGS, "clip.center_crop=0.8", *(f"{key}={value}" for key, value in CLIP.items())]
    recipe = load_recipe("ssv2-resnet3d18", (f"data.root={tiny_set}", *settings))
    run = create_run("tsm", root=tmp_path_factory.mktemp("work") / "runs")
    run.recipe_file.write_text(dump_recipe(recipe))
    labels = open_manifest(tiny_set).labels
    torch.manual_seed(0)
    model = build_model(recipe.model, len(labels))
    torch.nn.init.normal_(model.head.weight)  # so that views differ
    (run.checkpoints / "best").mkdir(parents=True)
    save_weights(run.checkpoints / "best" / WEIGHTS, model, labels=labels, recipe=recipe, epoch=1)
    return run


@pytest.fixture(scope="module")
def engine(run: Run) -> Path:
    done = ssv2rt("build-engine", run.path, "--fp32", "--backend", "openvino", "--set", "gate.clips=4")
    assert done.returncode == 0, done.stderr
    return run.engines / "fp32-openvino"


def logits_of_views(run: Run, videos: list[Path], clip: Clip) -> torch.Tensor:
    """float32 (N, V * S, K)"""
    loader = ClipLoader(clip=clip, batch=len(videos), data=Data(threads=1), device=torch.device("cpu"))
    (batch,) = loader.batches([[VideoRequest(path.name, path, clip) for path in videos]])
    with torch.inference_mode():
        return load_trained(run).model(batch.clips).view(len(videos), clip.views[0] * clip.views[1], -1)


def scored(folder: Path, *arguments: object) -> np.ndarray:
    """float (N, K): the logits that `score` writes."""
    done = ssv2rt("score", *arguments, "--logits", "--sort", "--out", "p.csv", "--overwrite", cwd=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "p.csv").open(newline="") as file:
        return np.array([json.loads(row["logits"]) for row in csv.DictReader(file)])


def test_score_writes_the_mean_logits_of_the_views(run: Run, engine: Path, tiny_set: Path, tmp_path: Path) -> None:
    videos = sorted((tiny_set / "videos").iterdir())[:6]
    clip = open_bundle(engine).info.clip
    assert (clip.sampling, clip.views, clip.average) == ("tsm", (2, 3), "logits")
    for views in ("2x3", "1x3", "1x1"):
        expected = logits_of_views(run, videos, with_views(clip, views)).mean(1).numpy()
        found = scored(tmp_path, *videos, "--engine", engine, "--views", views)
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert json.loads(metadata_file(tmp_path / "p.csv").read_text())["clip"]["average"] == "logits"


def test_the_default_is_the_mean_of_probabilities(run: Run, engine: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Also that of bundles that were built before there was a choice, and the two differ."""
    videos = sorted((tiny_set / "videos").iterdir())[:6]
    info = json.loads((engine / INFO).read_text())
    del info["clip"]["average"]
    older = tmp_path / "older"
    older.mkdir()
    for file in engine.iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    (older / INFO).write_text(json.dumps(info))
    every = logits_of_views(run, videos, open_bundle(engine).info.clip)
    expected = every.softmax(2).mean(1).log().numpy()
    found = scored(tmp_path, *videos, "--engine", older)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(expected - every.mean(1).log_softmax(1).numpy()).max() > 1e-4


def test_windows_are_averaged_likewise(run: Run, engine: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A window that is longer than the video has the views of the video."""
    videos = sorted((tiny_set / "videos").iterdir())[:6]
    whole = scored(tmp_path, *videos, "--engine", engine)
    assert np.allclose(scored(tmp_path, *videos, "--engine", engine, "--window", 60), whole, atol=1e-4)


def test_evaluate_gives_what_score_gives(run: Run, engine: Path, tiny_set: Path, tmp_path: Path) -> None:
    annotations = ("--annotations", tiny_set / "validation.json", "--json")
    for views in ((), ("--views", "1x3")):
        call = ("evaluate", run.path, "--predictions", "e.csv", "--overwrite", "--json", *views)
        done = ssv2rt(*call, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = ssv2rt(
            "score", *annotations, "--engine", engine, "--sort", "--out", "s.csv", "--overwrite", *views, cwd=tmp_path
        )
        assert told.returncode == 0, told.stderr
        ours, theirs = (
            {Path(row["video"]).name: row for row in csv.DictReader((tmp_path / name).open(newline=""))}
            for name in ("e.csv", "s.csv")
        )
        assert ours.keys() == theirs.keys() and len(ours) == 10
        for name, row in ours.items():
            assert row["label"] == theirs[name]["label"] and row["expected"] == theirs[name]["expected"]
            assert float(row["probability"]) == pytest.approx(float(theirs[name]["probability"]), abs=2e-4)


def test_the_average_of_a_run_may_be_changed_like_its_views(run: Run, tmp_path: Path) -> None:
    """Both are of evaluation alone; the sampling is what the network was trained with."""
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("engines"))
    text = run.recipe_file.read_text()
    losses = []
    for average in ("logits", "probabilities"):
        copy.recipe_file.write_text(text.replace('average = "logits"', f'average = "{average}"'))
        done = ssv2rt("evaluate", copy.path, "--json")
        assert done.returncode == 0, done.stderr
        losses.append(json.loads(done.stdout)["loss"])
    assert losses[0] != losses[1]
    copy.recipe_file.write_text(text.replace('sampling = "tsm"', 'sampling = "ibm"'))
    done = ssv2rt("evaluate", copy.path)
    assert done.returncode == 1 and "clip.sampling was tsm, and is ibm; change it back" in done.stderr


def test_an_engine_of_an_onnx_file_has_them_too(tmp_path: Path, tiny_set: Path) -> None:
    """`--set clip.KEY` of each, said when it is built and by `inspect`; and `score` averages as they say."""
    ending_in(tmp_path / "theirs.onnx")
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    settings = {**CLIP, "clip.sampling": "ibm", "clip.timing": "time", "clip.rate": "30"}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    call = ("--fp32", "--backend", "openvino", "--set", "gate.clips=4", *options)
    done = ssv2rt("build-engine", "--onnx", "theirs.onnx", "--labels", "five.txt", *call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = "ibm sampling by time, at 30 frames per second, center crop 0.875, views 2x3, mean logits"
    assert f"clips are read with {words} (assumed: clip.center_crop;" in done.stderr
    assert words in ssv2rt("inspect", "theirs", cwd=tmp_path).stdout
    bundle = open_bundle(tmp_path / "runs/theirs/engines/fp32-openvino")
    assert "--set clip.average=logits" in bundle.info.rebuild
    video = min((tiny_set / "videos").iterdir())
    loader = ClipLoader(clip=bundle.info.clip, batch=1, data=Data(threads=1), device=torch.device("cpu"))
    (batch,) = loader.batches([[VideoRequest("a", video, bundle.info.clip)]])
    expected = load_runner(bundle)(batch.clips).mean(0).numpy()
    found = scored(tmp_path, video, "--run", "theirs")
    assert np.abs(found[0] - expected).max() < 1e-3 * np.abs(expected).max()


def test_an_assumed_average_is_named_where_there_are_views(tmp_path: Path) -> None:
    ending_in(tmp_path / "theirs.onnx")
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    named = source_of_onnx(tmp_path / "theirs.onnx", tmp_path / "five.txt", reading=ClipReading(views=(1, 3))).imported
    plain = source_of_onnx(tmp_path / "theirs.onnx", tmp_path / "five.txt").imported
    assert named and "clip.average" in named["assumed"] and plain and "clip.average" not in plain["assumed"]


def test_preview_shows_the_frames_of_each_view(tmp_path: Path, tiny_set: Path) -> None:
    video = min((tiny_set / "videos").iterdir())
    options = [part for key, value in CLIP.items() for part in ("--set", f"{key}={value}")]
    size = ("--set", "clip.frames=4", "--set", "clip.size=32")
    done = ssv2rt("preview", video, *size, *options, "--out", "views.png", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "views.png").is_file(), done.stderr
    recipe = load_recipe("ssv2-resnet3d18", ("clip.frames=4", *(f"{key}={value}" for key, value in CLIP.items())))
    rows = video_rows(video, recipe)
    n = rows[0][1].video_frames
    middles, firsts = [int((x + 0.5) * n / 4) for x in range(4)], [int(x * n / 4) for x in range(4)]
    assert [request.frames[0].tolist() for _, request in rows] == [middles] * 3 + [firsts] * 3
