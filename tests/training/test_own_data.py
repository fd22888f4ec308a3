"""Data of one's own: few clips without a recipe, and fine-tuning of a run."""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.scenes import draw_clip
from ssv2rt.models.weights import load_trained
from ssv2rt.training.from_init import follow_init
from ssv2rt.training.pace import Pace
from tests.cli import ssv2rt

TINY = ("--set", "clip.size=32", "--set", "clip.frames=4", "--set", "model.width=4")


def write_video(path: Path, clip: np.ndarray) -> None:
    """A video of a uint8 RGB clip (T, H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def motions(folder: Path, clips: int, seed: int) -> Path:
    """Three kinds of motion, each as a folder of videos of 80x60."""
    for kind, name in enumerate(("push from left to right", "raise", "come closer")):
        for number in range(clips):
            rng = np.random.default_rng([seed, kind, number])
            write_video(folder / name / f"{number}.mp4", draw_clip(rng, kind, int(rng.integers(14, 30)), 80, 60))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return motions(tmp_path_factory.mktemp("own") / "data", 12, 1)


def test_a_few_clips_train_without_any_setting(own: Path, tmp_path: Path) -> None:
    """With the same recipe and data, and with the same settings when it is repeated or resumed."""
    first = ssv2rt("train", "--data", own, "--name", "t", *TINY, "--set", "train.epochs=2", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "settings for 33 training clips: batch_size = 8, learning_rate = 0.000707" in first.stderr
    recipe = Run(tmp_path / "runs" / "t").recipe().train
    assert (recipe.batch_size, recipe.epochs, recipe.fit_to_data) == (8, 2, False)
    again = ssv2rt("train", "runs/t/recipe.toml", "--name", "again", "--json", cwd=tmp_path)
    assert again.returncode == 0 and "settings for" not in again.stderr
    runs = [Run(tmp_path / "runs" / name) for name in ("t", "again")]
    assert runs[0].metrics_file.read_text() == runs[1].metrics_file.read_text()
    assert ssv2rt("train", "--resume", "t", cwd=tmp_path).returncode == 0


def test_progress_counts_clips_once_and_tells_how_long_the_run_takes(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """33 clips fill five batches of 8; the last is filled up."""
    for name in ("FIRST_LINE", "NEXT_LINE"):
        monkeypatch.setattr(f"ssv2rt.core.progress.{name}", 0.0)
    said = ssv2rt("train", "--data", own, *TINY, "--epochs", "2", cwd=tmp_path).stderr
    assert re.search(
        r"epoch 1/2: 6/33 clips, [\d.]+/s, \d+:\d\d left, whole run \d+:\d\d left, loss [\d.]+, top-1 ", said
    )
    assert re.search(r"epoch 2/2: 6/33 clips, [\d.]+/s, \d+:\d\d left, loss ", said)
    assert "epoch 2/2: 33/33 clips" in said and "40" not in re.findall(r"epoch \d/2: \d+/(\d+)", said)
    assert re.search(r"epoch 1/2: loss .*; \d+:\d\d left", said) and not re.search(r"epoch 2/2: loss .* left", said)


def test_the_time_left_is_that_of_the_epoch_its_evaluation_and_whole_epochs() -> None:
    pace = Pace(steps_per_epoch=4)
    for _ in range(4):
        pace.add_step(2.0)
    pace.evaluation = 5.0
    assert pace.seconds_of(3) == 3 * (4 * 2.0 + 5.0)
    assert pace.seconds_of(3, steps=2, seconds_per_step=10.0) == 2 * 10.0 + 5.0 + 3 * (4 * 2.0 + 5.0)


@pytest.mark.parametrize("recipe", ["ssv2-resnet3d18", "ssv2-resnet3d50", "ssv2-i3d", "demo", "small"])
def test_every_recipe_takes_a_few_clips(own: Path, tmp_path: Path, recipe: str) -> None:
    done = ssv2rt("train", recipe, "--data", own, *TINY, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["training clips"] == 33 and plan["optimizer steps per epoch"] == 5 and plan["epochs"] == 80


def test_a_recipe_of_ones_own_is_taken_as_it_is_and_told_of_the_setting(own: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nbatch_size = 8\naccumulate = 8\n")
    done = ssv2rt("train", "mine.toml", "--data", own, *TINY, cwd=tmp_path)
    assert done.returncode == 1
    assert (
        "33 training clips do not fill one update of 8 x 8" in done.stderr and "train.fit_to_data = true" in done.stderr
    )


def test_fine_tuning_takes_over_network_clips_and_classes_of_a_run(
    tmp_path: Path, tiny_run: Run, tiny_set: Path
) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "first", symlinks=True)
    (tmp_path / "runs" / "latest").symlink_to("first")
    words = (
        "--set",
        "train.learning_rate=1e-9",
        "--set",
        "train.batch_size=4",
        "--set",
        "clip.frames=8",
        "--epochs",
        "1",
    )
    done = ssv2rt("train", "finetune", "--init", "latest", "--data", tiny_set, "--name", "t", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "network and clips of 'first': resnet3d18, 8 frames of 32 pixels" in done.stderr
    assert "10 of 10 classes are taken over by name" in done.stderr
    run, before = Run(tmp_path / "runs" / "t"), tiny_run.recipe()
    recipe = run.recipe()
    assert recipe.model.init == "first" and not recipe.model.from_init  # `latest` is another run by now
    assert (recipe.model.width, recipe.model.temporal_strides) == (before.model.width, before.model.temporal_strides)
    assert (recipe.clip.size, recipe.clip.frames) == (before.clip.size, 8) and recipe.train.head_rate == 10
    ours, theirs = (load_trained(found).model for found in (run, tiny_run))
    assert torch.allclose(ours.head.weight, theirs.head.weight, atol=1e-6)
    (tmp_path / "runs" / "first").rename(tmp_path / "gone")
    done = ssv2rt("train", "--resume", "t", "--epochs", 2, cwd=tmp_path)  # which needs no initial weights
    assert done.returncode == 0 and "epoch 2/2" in done.stderr, done.stderr


def test_fine_tuning_knows_published_networks_and_needs_weights() -> None:
    recipe = load_recipe("finetune", ("model.init=r2plus1d_18", "clip.frames=8"))
    found, text = follow_init(recipe, frozenset({"clip.frames"}))
    assert (found.model.name, found.clip.frames, found.clip.size) == ("r2plus1d_18", 8, 112)
    assert found.model.dropout == recipe.model.dropout and "r2plus1d_18, 8 frames of 112 pixels" in text
    assert follow_init(found) == (found, "")
    with pytest.raises(UsageError, match="give --init a run, a file or a published network"):
        follow_init(load_recipe("finetune"))


def held_out_accuracy(data: Path, other: Path, cwd: Path) -> float:
    """Top-1 in percent on other clips, after training with no option but --data."""
    trained = ssv2rt("train", "--data", data, cwd=cwd)
    assert trained.returncode == 0, trained.stderr
    done = ssv2rt("evaluate", "--data", other, "--split", "all", "--json", cwd=cwd)
    return float(json.loads(done.stdout)["top1"])


@pytest.mark.slow
def test_a_plain_run_on_three_classes_of_twelve_clips_is_right_on_held_out_clips(own: Path, tmp_path: Path) -> None:
    assert held_out_accuracy(own, motions(tmp_path / "other", 10, 2), tmp_path) > 80


@pytest.mark.slow
def test_a_plain_run_on_pieces_of_real_videos_is_right_on_later_pieces(real_videos: Path, tmp_path: Path) -> None:
    """The first two thirds of each video are training clips, the rest is held out."""
    for name in ("arm_wrestling_h264.mp4", "kinetics_sample.mp4", "ucf_sample.avi"):
        with av.open(str(real_videos / name)) as container:
            frames = [frame.to_ndarray(format="rgb24", width=160, height=120) for frame in container.decode(video=0)]
        for number, piece in enumerate(np.array_split(np.stack(frames), 18)):
            part = "data" if number < 12 else "other"
            write_video(tmp_path / part / Path(name).stem / f"{number}.mp4", piece)
    assert len(open_manifest(tmp_path / "data").table) == 36
    assert held_out_accuracy(tmp_path / "data", tmp_path / "other", tmp_path) > 80
