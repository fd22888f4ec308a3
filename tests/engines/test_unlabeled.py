"""Engines without a labeled data set: compared on generated clips, and calibrated on unlabeled videos."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Clip
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.bundle import open_bundle
from ssv2rt.engines.source import source_of_model
from ssv2rt.engines.unlabeled import GeneratedClips, clips_of_videos, find_videos
from ssv2rt.models.clip_model import ClipModel
from tests.cli import ssv2rt
from tests.engines.conftest import CLIP, LABELS

FEW = ("--set", "calibration.clips=8", "--set", "gate.clips=6")


@pytest.fixture
def run_without_data(tiny_run: Run, tmp_path: Path) -> Path:
    """A run as it is after it was copied to a machine that does not have its data."""
    folder = tmp_path / "runs" / "copied"
    shutil.copytree(tiny_run.path, folder, ignore=shutil.ignore_patterns("engines"))
    recipe = folder / "recipe.toml"
    (line,) = [line for line in recipe.read_text().splitlines() if line.startswith("root = ")]
    recipe.write_text(recipe.read_text().replace(line, 'root = "/not/on/this/machine"'))
    return folder


def videos_with_bad_ones(tiny_set: Path, folder: Path, count: int) -> Path:
    """A folder of unlabeled videos in subfolders; two of them cannot be read."""
    for number, video in enumerate(sorted((tiny_set / "videos").iterdir())[:count]):
        (folder / f"day {number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / f"day {number % 2}" / video.name)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.webm").write_text("no video")
    (folder / "notes.txt").write_text("no video, and not named like one")
    return folder


def test_generated_clips_vary_and_repeat() -> None:
    clip = Clip(frames=5, size=150)  # larger than scenes are drawn
    found = [batch.clips for batch in GeneratedClips(12, clip).batches("drawing", 5)]
    assert [tuple(batch.shape) for batch in found] == [(5, 5, 150, 150, 3), (5, 5, 150, 150, 3), (2, 5, 150, 150, 3)]
    clips = torch.cat(found).float()
    assert clips.flatten(1).std(1).min() > 5, "pictures are not flat"
    assert (clips[:, 1:] - clips[:, :-1]).abs().flatten(1).mean(1).min() > 0.5, "pictures move"
    assert torch.pdist(clips.flatten(1)).min() > 1000, "no two clips are alike"
    again = torch.cat([batch.clips for batch in GeneratedClips(12, clip).first(4).batches("drawing", 4)])
    assert torch.equal(again, torch.cat(found)[:4])
    other = next(GeneratedClips(12, clip, seed=1).batches("drawing", 4)).clips
    assert not torch.equal(again, other)


def test_a_run_without_its_data_is_compared_on_generated_clips(run_without_data: Path, tmp_path: Path) -> None:
    done = ssv2rt("build-engine", "copied", "--fp16", "--backend", "openvino", *FEW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "the data of 'resnet3d18' is not here ('/not/on/this/machine'): the engine is compared on generated"
        in done.stderr
    )
    assert "top-1, PyTorch  not measured" in done.stdout and "clips from      generated scenes" in done.stdout
    verification = open_bundle(run_without_data / "engines" / "fp16-openvino").info.verification or {}
    assert (verification["clips"], verification["top1_model"], verification["reference"]) == (6, None, "PyTorch")
    assert verification["agreement"] >= 99.5
    (note,) = verification["notes"]
    assert note == "accuracy is not measured: the clips have no labels, so gate.max_top1_drop = 0.5 is not checked"
    shown = ssv2rt("inspect", "copied", cwd=tmp_path)
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["top1_drop", "not", "measured"] in rows and ["gate", "max_top1_drop", "0.5"] in rows


def test_int8_asks_for_clips_where_there_are_none(run_without_data: Path, tmp_path: Path) -> None:
    done = ssv2rt("build-engine", "copied", "--int8", "--backend", "openvino", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "Error: int8 is calibrated on clips, and the data of 'resnet3d18' is not here ('/not/on/this/machine'); give --data "
        "DIR, or --calibrate-on with a folder of videos, which need no labels"
    )
    done = ssv2rt("build-engine", "copied", "--fp16", "--calibrate-on", "clips", cwd=tmp_path)
    assert done.returncode == 2 and "--calibrate-on clips is for --int8 and --fp8; fp16 needs none" in done.stderr
    done = ssv2rt("build-engine", "copied", "--int8", "--calibrate-on", "clips", cwd=tmp_path)
    assert done.returncode == 2 and "--calibrate-on clips: there is no such file, folder or list" in done.stderr


def test_int8_is_calibrated_on_unlabeled_videos(run_without_data: Path, tiny_set: Path, tmp_path: Path) -> None:
    videos_with_bad_ones(tiny_set, tmp_path / "videos", 14)
    options = ("--int8", "--backend", "openvino", "--max-drop", "50", *FEW)
    done = ssv2rt("build-engine", "copied", *options, "--calibrate-on", "videos", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    info = open_bundle(run_without_data / "engines" / "int8-openvino").info
    assert info.calibration and (info.calibration["clips"], info.calibration["clips_from"]) == (8, "videos")
    assert info.verification and info.verification["top1_drop"] is None
    assert (info.verification["clips"], info.verification["clips_from"]) == (6, "other videos of videos")
    assert "--calibrate-on videos" in info.rebuild


def test_validation_clips_are_used_where_there_are_some(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "whole", ignore=shutil.ignore_patterns("engines"))
    names = "\n".join(str(video) for video in sorted((tiny_set / "videos").iterdir())[:9])
    (tmp_path / "list.txt").write_text(names)
    options = ("--int8", "--backend", "openvino", "--set", "gate.max_top1_drop=100", "--set", "calibration.clips=300")
    done = ssv2rt("build-engine", "whole", *options, "--calibrate-on", "@list.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    info = open_bundle(tmp_path / "runs" / "whole" / "engines" / "int8-openvino").info
    assert info.calibration and info.calibration["clips"] == 9 and info.verification
    assert "calibrating on 9 clips, all that there are; calibration.clips = 300" in done.stderr
    assert info.verification["clips_from"] == f"validation split of {tiny_set}"
    # The gate asks for 200 clips.
    clips = info.verification["clips"]
    assert info.verification["notes"] == [f"compared on {clips} clips, and gate.clips = 200"] and clips < 200
    assert info.verification["notes"][0] in done.stderr and info.verification["notes"][0] in done.stdout


def test_classes_of_the_data_are_matched_by_name(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    """Beside unlabeled videos: some of the network's classes, in another order, and one that it does not know."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "whole", ignore=shutil.ignore_patterns("engines"))
    listing = list_clips(tiny_set)
    clips = [clip for clip in listing.clips if clip.split == "validation"]
    names = dict(enumerate(listing.labels)) | {0: "Juggling"}
    rows = [(str(tiny_set / clip.path), names[clip.label], "validation") for clip in clips if clip.label != 1]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    options = ("--int8", "--backend", "openvino", *FEW, "--set", "gate.max_top1_drop=100")
    call = ("build-engine", "whole", *options, "--calibrate-on", tiny_set / "videos", "--data", "t.csv")
    done = ssv2rt(*call, cwd=tmp_path)
    assert done.returncode == 0 and "so 1 of its 9 clips are left out: 'Juggling'" in done.stderr, done.stderr
    info = open_bundle(tmp_path / "runs" / "whole" / "engines" / "int8-openvino").info
    assert info.labels == listing.labels and info.verification and info.calibration
    assert (info.calibration["clips"], info.verification["clips"]) == (8, 6)
    assert info.verification["clips_from"].startswith("validation split of") and info.verification["top1_model"] >= 0


def test_bad_videos_are_named_and_too_few_good_ones_refused(
    model: ClipModel, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = videos_with_bad_ones(tiny_set, tmp_path / "videos", 9)
    source = source_of_model(model, "net", LABELS, CLIP)
    recipe = load_engine_recipe("int8", ("calibration.clips=8", "gate.clips=4"))
    chosen = clips_of_videos(source, [str(folder)], recipe, None)
    said = capsys.readouterr().err
    for name, why in (("empty.mp4", "unreadable"), ("text.webm", "unreadable")):
        assert f"'{folder / name}' is left out: " in said and why in said
    assert "notes.txt" not in said
    # One video is left for the comparison, and that is too few.
    assert chosen.calibration and (len(chosen.calibration), len(chosen.verification)) == (8, 4)
    assert chosen.verification.clips_from == f"{folder}, which it is calibrated on, too"
    many = load_engine_recipe("int8", ("calibration.clips=100", "gate.clips=4"))
    for video in sorted(folder.glob("day 0/*"))[:3]:
        video.unlink()
    with pytest.raises(
        UserError, match="6 of 8 videos for calibration can be read, and it takes at least 8; add videos to"
    ):
        clips_of_videos(source, [str(folder)], many, None)


def test_videos_are_found_once_in_folders_lists_and_patterns(tiny_set: Path, tmp_path: Path) -> None:
    folder = videos_with_bad_ones(tiny_set, tmp_path / "videos", 4)
    (folder / "day 0" / "loop").symlink_to(folder)
    all_of_it = find_videos([str(folder)])
    assert len(all_of_it) == 6 and find_videos([str(folder), str(folder / "*.mp4"), str(all_of_it[0])]) == all_of_it
    (tmp_path / "list.txt").write_text("".join(f"{video}\n\n" for video in all_of_it[:2]))
    assert find_videos([f"@{tmp_path / 'list.txt'}"]) == all_of_it[:2]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="nothing: there are no videos; give a folder, files or @list.txt"):
        find_videos([str(tmp_path / "nothing")])


def test_blocks_are_chosen_by_changed_predictions_where_labels_are_missing(
    run_without_data: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """With --max-drop on unlabeled videos, the fp32 network's predictions are the labels."""
    done = ssv2rt(
        *("build-engine", "copied", "--int8", "--backend", "openvino", "--max-drop", "0", *FEW),
        *("--calibrate-on", tiny_set / "videos"),
        cwd=tmp_path,
    )
    folder = run_without_data / "engines" / "int8-openvino"
    info = open_bundle(folder).info
    assert done.returncode == 0 and info.calibration and info.calibration["drop"] <= 0, done.stderr
    logits = load_runner(open_bundle(folder))(torch.from_numpy(np.zeros((2, 4, 32, 32, 3), np.uint8)))
    assert bool(logits.isfinite().all())
    assert json.loads((folder / "bundle.json").read_text())["verification"]["top1_model"] is None
