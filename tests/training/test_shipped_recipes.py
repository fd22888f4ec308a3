"""The shipped recipes train: each for an optimizer step, from published weights, and from runs on fewer frames."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ssv2rt.core.recipe_files import load_recipe, recipe_names
from ssv2rt.core.recipes import Model
from ssv2rt.core.run_folders import Run
from ssv2rt.models.load_weights import read_weights
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.published.catalog import IMAGENET, PUBLISHED, Published, class_names
from ssv2rt.published.load import start_from
from ssv2rt.training.batch_size import estimate_step_memory
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.optimizer import scaled_learning_rate
from tests.cli import Done, ssv2rt
from tests.models import publishers
from tests.models.reference import random_state, shapes_2d
from tests.published.as_published import publisher_of

WIDTH = 8
SMALL = ("clip.size=32", f"model.width={WIDTH}", "train.batch_size=8", "train.accumulate=1", "train.precision=fp32")


@pytest.fixture(scope="module")
def eight_clips(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with eight clips for training, which are one optimizer step, and two for validation."""
    folder = tmp_path_factory.mktemp("data")
    videos = sorted((tiny_set / "videos").iterdir())
    for number, video in enumerate(videos[:10]):
        place = folder / ("train" if number < 8 else "validation") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, place)
    return folder


def train(recipe: str, data: Path, cwd: Path, *arguments: str, settings: tuple[str, ...] = ()) -> Done:
    sets = [word for setting in (*SMALL, "train.fit_to_data=false", *settings) for word in ("--set", setting)]
    return ssv2rt("train", recipe, "--data", data, "--epochs", 1, *sets, *arguments, cwd=cwd)


# finetune takes its network from --init.
@pytest.mark.parametrize("name", [name for name in recipe_names("pipelines") if name != "finetune"])
def test_each_recipe_trains(name: str, eight_clips: Path, tmp_path: Path) -> None:
    done = train(name, eight_clips, tmp_path, "--name", "run", settings=("clip.frames=8", "model.init=''"))
    assert done.returncode == 0 and "epoch 1/1: loss" in done.stderr, done.stderr
    assert ("it falls by a cosine" in done.stderr) == (load_recipe(name).train.schedule == "steps")
    lines = read_metrics(Run(tmp_path / "runs" / "run").metrics_file)
    assert lines[-1]["update"] == 1 and lines[-1]["validation"]["clips"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "ssv2-tsm-r50-16f",
        *(
            pytest.param(f"ssv2-{name}", marks=pytest.mark.slow)
            for name in ("resnet3d50-32f", "slow-r50", "slowfast-r50")
        ),
    ],
)
def test_clips_of_32_frames_start_from_a_run_on_16(name: str, eight_clips: Path, tmp_path: Path) -> None:
    first = ("--name", "frames16")
    done = train(name, eight_clips, tmp_path, *first, settings=("clip.frames=16", "model.init=''"))
    assert done.returncode == 0, done.stderr
    still = ("clip.frames=32", "train.learning_rate=1e-12")
    done = train(name, eight_clips, tmp_path, "--name", "frames32", "--init", "frames16", settings=still)
    assert done.returncode == 0, done.stderr
    short, long = (load_trained(Run(tmp_path / "runs" / run)) for run in ("frames16", "frames32"))
    assert (short.recipe.clip.frames, long.recipe.clip.frames) == (16, 32)
    assert "frames16: " in done.stderr and "2 of 2 classes are taken over by name" in done.stderr
    assert "skipped" not in done.stderr and "start fresh" not in done.stderr
    before = dict(short.model.named_parameters())
    for key, weight in long.model.named_parameters():
        assert torch.allclose(weight, before[key], rtol=0, atol=1e-7), key


def narrow(recipe: str) -> Model:
    """The network of a recipe, as narrow as its publisher's code can make it."""
    return load_recipe(recipe, (f"model.width={32 if 'slowfast' in recipe else WIDTH}",)).model


def publishers_file(name: str, width: int, folder: Path) -> Path:
    """A file of random weights, narrow but otherwise as the publisher saves those of a name, and called as there."""
    entry = PUBLISHED.get(name) or IMAGENET[name]
    path = folder / entry.file
    if isinstance(entry, Published):
        return Path(publisher_of(entry, width).save(folder)).rename(path)
    depths = publishers.DEPTHS["101" if "101" in name else "50"]
    torch.save(random_state(shapes_2d(width, depths, bottleneck=True, classes=1000)), path)
    return path


STARTS = {
    "ssv2-resnet3d50-32f": ("resnet50", "i3d-r50-ssv2"),
    "ssv2-slow-r50": ("slow-r50-k400", "slow-r50-ssv2", "resnet50"),
    "ssv2-slowfast-r50": ("slowfast-r50-k400", "slowfast-r50-ssv2"),
    "ssv2-tsm-r50-8f": ("resnet50", "tsm-r50-8f-ssv2", "tsm-r50-8f-ssv2-mmaction2"),
    "ssv2-tsm-r50-16f": ("resnet50", "tsm-r50-16f-ssv2", "tsm-r50-16f-ssv2-mmaction2"),
    "ssv2-tsm-r101-8f": ("resnet101", "tsm-r101-8f-ssv2", "tsm-r101-8f-ssv2-mmaction2"),
    "ssv2-r3d_18": ("r3d_18",),
    "ssv2-mc3_18": ("mc3_18",),
    "ssv2-r2plus1d_18": ("r2plus1d_18",),
}
"""What each recipe can start from: its own `model.init`, and the published networks that it trains."""


@pytest.mark.parametrize(("recipe", "source"), [(recipe, name) for recipe, names in STARTS.items() for name in names])
def test_recipes_start_from_published_weights(recipe: str, source: str, tmp_path: Path) -> None:
    """Nothing but a classifier of other classes is left out, or starts fresh."""
    settings = narrow(recipe)
    model = build_model(settings, 174)
    path = str(publishers_file(source, settings.width, tmp_path))
    report = start_from(model, path, how=settings.inflate, labels=class_names("ssv2"))
    of_ssv2 = source.endswith(("-ssv2", "-mmaction2"))
    assert set(report.missing) == (set() if of_ssv2 else {"head.weight", "head.bias"})
    assert {name for name, _ in report.skipped} <= set(report.missing)
    assert ("174 of 174 classes are taken over by name" in str(report)) == of_ssv2


@pytest.mark.parametrize("name", ["slow-r50", "slowfast-r50"])
def test_a_file_of_kinetics_weights_under_the_name_that_pytorchvideo_gives_it(name: str, tmp_path: Path) -> None:
    """That is the name of its file for Something-Something V2, too, which has other classes and other colors."""
    settings = narrow(f"ssv2-{name}")
    file = publishers_file(f"{name}-k400", settings.width, tmp_path)
    file = file.rename(tmp_path / PUBLISHED[f"{name}-ssv2"].file)
    model, kinetics = build_model(settings, 400), class_names("kinetics400")
    report = start_from(model, str(file), labels=kinetics)
    assert not report.missing and "400 of 400 classes are taken over by name" in str(report)
    saved = read_weights(str(file))[0]
    stems = [weight for key, weight in saved.items() if key.startswith("blocks.0.") and key.endswith("conv.weight")]
    mine = [weight for key, weight in model.state_dict().items() if key.endswith("stem.0.weight")]
    assert stems and all(torch.equal(a, b) for a, b in zip(stems, mine, strict=True))


def test_every_published_network_has_a_recipe_that_trains_it() -> None:
    trained = {name for names in STARTS.values() for name in names}
    assert {"i3d-r101-ssv2"} == PUBLISHED.keys() - trained  # ssv2-resnet3d50-32f says how
    for recipe, names in STARTS.items():
        settings = load_recipe(recipe)
        assert settings.model.init == names[0]
        for entry in (PUBLISHED[name] for name in names if name in PUBLISHED):
            assert entry.model.name == settings.model.name and entry.clip.frames == settings.clip.frames
            if entry.classes == "ssv2":
                assert entry.clip.sampling == settings.clip.sampling


FOR_THE_WHOLE_SET = [name for name in recipe_names("pipelines") if name.startswith("ssv2-")]


def recipe_text(name: str) -> str:
    """The comment at the top of a recipe."""
    text = (Path(__file__).parents[2] / "pipelines" / f"{name}.toml").read_text(encoding="utf-8")
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", FOR_THE_WHOLE_SET)
def test_the_commands_of_a_recipe_have_its_clips_per_step(name: str) -> None:
    """On eight GPUs as many as on one, and on four times eight four times as many, at four times the learning rate."""
    text = recipe_text(name)
    commands = [shlex.split(part) for part in re.findall(r"torchrun .*", text.replace("\\\n", " "))]
    assert len(commands) == 2 and f"ssv2rt train {name} " in text
    recipe = load_recipe(name)
    clips = recipe.train.batch * recipe.train.accumulate
    for words, machines in zip(commands, (1, 4), strict=True):
        assert words[words.index("train") + 1] == name and words[words.index("--nproc-per-node") + 1] == "8"
        given = load_recipe(name, tuple(b for a, b in itertools.pairwise(words) if a == "--set")).train
        assert 8 * machines * given.batch * given.accumulate == machines * clips == machines * recipe.train.update_clips
        assert scaled_learning_rate(given, 8 * machines) == pytest.approx(machines * recipe.train.learning_rate)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_THE_WHOLE_SET)
def test_the_memory_that_a_recipe_states_is_what_is_estimated(name: str) -> None:
    text = recipe_text(name)
    found = re.search(r"Memory: ([\d.]+) GB, and ([\d.]+) GB for each clip", text)
    assert found
    memory = estimate_step_memory(load_recipe(name), 174, "bf16")
    assert float(found[1]) == pytest.approx(memory.fixed / 1e9, abs=0.06)
    assert float(found[2]) == pytest.approx(memory.per_clip / 1e9, rel=0.05)
