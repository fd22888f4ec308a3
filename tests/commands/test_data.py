"""`preview`, `benchmark decode` and views on the command line."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.benchmark.peers import peers
from ssv2rt.core.hardware import choose_device
from ssv2rt.core.recipe_files import default_recipe, load_recipe
from ssv2rt.dataset.index import open_manifest
from ssv2rt.report.benchmark_tables import show_engine
from ssv2rt.report.contact_sheet import dataset_rows
from ssv2rt.training.request import TrainRequest
from tests.cli import ssv2rt


def picture(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


SMALL = ("--set", "clip.frames=4", "--set", "clip.size=32")


def test_preview_of_a_data_set_shows_its_clips(tmp_path: Path, tiny_set: Path) -> None:
    done = ssv2rt("preview", tiny_set, *SMALL, "--clips", 3, "--draws", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = picture(tmp_path / "preview.png")
    assert "rows        9" in done.stdout and sheet.shape[0] > sheet.shape[1]
    assert (sheet < 250).any(-1).mean() > 0.4  # pictures, not paper
    again = ssv2rt("preview", tiny_set, *SMALL, "--clips", 3, "--draws", 2, "--out", "b.png", cwd=tmp_path)
    assert again.returncode == 0 and (picture(tmp_path / "b.png") == sheet).all()


def test_preview_shows_and_names_the_operations_of_rand_augment(tmp_path: Path, tiny_set: Path) -> None:
    one = ("preview", tiny_set, *SMALL, "--clips", 1, "--draws", 1)
    done = ssv2rt(*one, "--out", "plain.png", cwd=tmp_path)
    assert done.returncode == 0 and ssv2rt(*one, "--set", "augment.rand_layers=3", cwd=tmp_path).returncode == 0
    rows = np.array_split(picture(tmp_path / "preview.png").astype(int) - picture(tmp_path / "plain.png"), 2)
    assert not rows[0].any() and rows[1].any()  # the clip as evaluation sees it, and as training does
    recipe = load_recipe("demo", ("augment.rand_layers=3",))
    _, (caption, request) = dataset_rows(open_manifest(tiny_set).split("train"), recipe, clips=1, draws=1, seed=0)
    assert len(request.operations) == 3 and all(operation.name in caption for operation in request.operations)


def test_preview_reads_clips_by_the_recipe_that_training_takes(tmp_path: Path, tiny_set: Path) -> None:
    """On this machine, and also of videos without labels."""
    device = choose_device()
    name = TrainRequest(data=tiny_set).recipe_name(device)
    assert name == default_recipe(device.type)
    assert (default_recipe("cuda"), default_recipe("cpu")) == ("ssv2-resnet3d18", "small")
    done = ssv2rt("preview", tiny_set / "videos", *SMALL, "--clips", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows        2" in done.stdout and f"recipe      {name}" in done.stdout


def test_a_flat_folder_of_videos_is_told_from_a_data_set(tmp_path: Path, tiny_set: Path) -> None:
    videos = tiny_set / "videos"
    name = min(path.name for path in videos.iterdir())
    done = ssv2rt("train", "--data", videos, cwd=tmp_path)
    says = f"the 80 videos in '{videos}', such as '{name}', have no labels; move each into a folder named after its "
    assert (
        done.returncode == 1
        and f"Error: {says}class, as in '{videos}/CLASS/{name}', or give --data a table" in done.stderr
    )
    done = ssv2rt("index", videos, "--out", "m.parquet", cwd=tmp_path)
    assert done.returncode == 0 and says in done.stderr


def test_a_peer_that_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchcodec says it where FFmpeg is missing."""
    (tmp_path / "torchcodec").mkdir()
    text = "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is missing.\n[start of traceback]\n" + "x\n" * 99
    (tmp_path / "torchcodec" / "__init__.py").write_text(f"raise RuntimeError({text!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    assert peers()["torchcodec + torch"] == "Could not load libtorchcodec. Likely causes: 1. FFmpeg is missing."


def test_preview_of_a_video_shows_its_views(tmp_path: Path, tiny_set: Path) -> None:
    video = next((tiny_set / "videos").iterdir())
    done = ssv2rt("preview", video, *SMALL, "--set", "clip.views=[2,3]", cwd=tmp_path)
    assert done.returncode == 0 and "rows        6" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("preview", "gone.mp4"), 2, "no data 'gone.mp4'"),
        (("preview", "bad.mp4"), 1, "'bad.mp4' cannot be shown: unreadable"),
        (("preview", "bad.mp4", "--recipe", "no"), 2, "no recipe 'no'"),
        (("benchmark", "decode", "bad.mp4", "--no-scale"), 1, "none of the videos can be read"),
        (("index", "gone"), 2, "no data 'gone'"),
        (("index", "bad.mp4"), 2, "neither a folder nor a .csv, .tsv or .parquet table"),
        (("evaluate", "--views", "2"), 1, "no run"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "bad.mp4").write_text("hi")
    done = ssv2rt(*arguments, cwd=tmp_path)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_training_benchmark_names_its_contestants_and_its_figures(tmp_path: Path, tiny_set: Path) -> None:
    small = ("clip.size=32", "clip.frames=4", "model.width=8", "train.batch_size=4", "train.precision=fp32")
    changes = [word for setting in small for word in ("--set", setting)]
    options = ("--data", tiny_set, "--steps", 2, "--rounds", 2, "--json", "t.json")
    done = ssv2rt("benchmark", "train", *options, *changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "t.json").read_text())
    rates = figures["clips_per_second"]
    assert set(rates) == {"fed by the loader", "the batch lies ready", "plain loop, fp32, contiguous"}
    ratio = rates["fed by the loader"]["median"] / rates["the batch lies ready"]["median"]
    assert figures["share_of_resident"] == pytest.approx(ratio)
    assert 0 < figures["share_of_matrix_product"] < 1 and figures["peak_memory"]["megabytes"] > 50
    assert 0 <= figures["waiting_for_data"] < 1
    # Forwards, and twice that on the way back.
    assert figures["gflop_per_step"] == pytest.approx(3 * figures["gflop_forwards"], rel=0.05)
    assert "of the rate with a ready batch" in " ".join(done.stdout.split())


def test_the_benchmark_names_its_contestants_and_its_figures(tmp_path: Path, tiny_set: Path) -> None:
    folder = tiny_set / "videos"
    done = ssv2rt(
        "benchmark", "decode", folder, "--clips", 8, "--rounds", 2, "--no-scale", "--json", "f.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    rates = figures["clips_per_second"]
    assert {"ssv2rt", "PyAV + torch", "FFmpeg, decoding alone"} <= set(rates)
    ours, best = rates["ssv2rt"]["median"], rates[figures["best_peer"]]["median"]
    assert figures["times_best_peer"] == pytest.approx(ours / best)
    assert all(rate["low"] <= rate["median"] <= rate["high"] for rate in rates.values())
    assert {"decode", "cut, scale, convert", "hand over"} <= set(figures["milliseconds_per_clip"])
    assert "times the best peer" in done.stdout


def test_every_contestant_makes_the_same_clips(tiny_set: Path) -> None:
    """A benchmark of unlike things would say nothing."""
    from ssv2rt.benchmark.decode import training_crop
    from ssv2rt.benchmark.peers import FLOAT, peers
    from ssv2rt.core.recipes import Clip
    from ssv2rt.video.decode import decode_clips
    from ssv2rt.video.probe import probe

    path = sorted((tiny_set / "videos").iterdir())[0]
    clip = Clip(frames=4, size=64)
    request = training_crop(path, probe(path), clip, 0)
    (ours,) = decode_clips(path, request, size=64)
    for name, peer in peers().items():
        if not isinstance(peer, str):
            theirs = peer(request, 64).numpy()
            if FLOAT in name:
                mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
                theirs = 255 * (theirs.transpose(1, 2, 3, 0) * std + mean)
            assert np.abs(theirs - ours.astype(float)).mean() < 4, name  # they take other filters for color


def test_views_are_averaged_in_evaluation_and_scoring(tmp_path: Path, tiny_run, tiny_bundle, tiny_set: Path) -> None:  # type: ignore[no-untyped-def]
    plain = ssv2rt("evaluate", tiny_run.path, "--json", cwd=tmp_path)
    views = ssv2rt("evaluate", tiny_run.path, "--views", "2x3", "--json", cwd=tmp_path)
    assert plain.returncode == views.returncode == 0, views.stderr
    a, b = json.loads(plain.stdout), json.loads(views.stdout)
    assert a["clips"] == b["clips"] == 10 and a["loss"] != b["loss"]
    done = ssv2rt(
        "score", tiny_set / "videos", "--engine", tiny_bundle.path, "--views", "3x2", "--out", "p.jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 80 and all(row["status"] == "ok" and 0 < row["probability"] <= 1 for row in rows)
    wrong = ssv2rt("evaluate", tiny_run.path, "--views", "2by3", cwd=tmp_path)
    assert wrong.returncode == 2 and "--views 2by3: write temporal clips x spatial crops, like 2x3" in wrong.stderr


def test_the_engine_benchmark_names_its_contestants_and_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--size",
        "4x32",
        "--batch",
        2,
        "--rounds",
        2,
        "--no-compile",
        *("--precision", "fp32", "--precision", "int8"),
        "--set",
        "model.width=8",
        "--json",
        "e.json",
    )
    done = ssv2rt("benchmark", "engine", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "e.json").read_text())
    rates, eager = figures["clips_per_second"], "PyTorch, fp32, contiguous"
    assert {eager, "ONNX Runtime, fp32", "ONNX Runtime, int8", "openvino, fp32", "openvino, int8"} <= set(rates)
    assert figures["times_eager"]["openvino, int8"] == pytest.approx(
        rates["openvino, int8"]["median"] / rates[eager]["median"]
    )
    assert figures["largest_difference"]["ONNX Runtime, fp32"] < 1e-4
    assert all(off < 0.2 for off in figures["largest_difference"].values())
    assert "called by hand" in done.stdout and "not measured" in done.stdout
    assert "openvino, int8" in figures["share_of_by_hand"]
    assert all(
        gmacs == pytest.approx(figures["gmacs_per_clip"]) for gmacs in figures["gmacs_per_clip_in_engines"].values()
    )
    assert "GMACs per clip;" in done.stdout
    of_tsm = {"gmacs_per_clip": 42.7, "gmacs_per_clip_in_engines": {"openvino": 42.7, "tensorrt": 62.3}}
    show_engine(figures | of_tsm)
    said = " ".join(capsys.readouterr().out.split())
    assert "42.7 GMACs per clip, 62.3 where temporal shifts are folded into convolutions;" in said
    for wrong, says in ((("--size", "4"), "--size 4: write frames x pixels"), (("nonet",), "no model 'nonet'")):
        done = ssv2rt("benchmark", "engine", *wrong, "--no-compile", cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
