"""Start of training: initial weights, a frozen backbone, and activation checkpointing."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.classes import for_classes
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.weights import WEIGHTS, load_trained
from ssv2rt.training.signals import Stopped
from ssv2rt.training.trainer import Trainer
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS


@pytest.fixture
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def trainer(manifest: Manifest, *overrides: str) -> Trainer:
    return Trainer(load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *overrides)), manifest)


def test_training_starts_from_the_weights_of_another_run(
    tiny_run: Run, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    work = trainer(manifest, f"model.init='{tiny_run.checkpoints / 'best' / WEIGHTS}'")
    weights = load_trained(tiny_run).model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in work.model.state_dict().items())
    assert "10 of 10 classes are taken over by name" in capsys.readouterr().err
    reordered = for_classes(manifest, tuple(reversed(manifest.labels)), "the test")
    work = trainer(reordered, f"model.init='{tiny_run.path}'")
    assert torch.equal(work.model.head.weight, weights["head.weight"].flip(0))
    assert torch.equal(work.model.head.bias, weights["head.bias"].flip(0))


def test_a_frozen_backbone_does_not_change(manifest: Manifest, tmp_path: Path) -> None:
    work = trainer(manifest, "train.freeze_backbone=true", "train.learning_rate=0.01")
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    work.fit(create_run("t", root=tmp_path))
    after = work.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone"))
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_activation_checkpointing_gives_the_same_weights(manifest: Manifest, tmp_path: Path) -> None:
    runs = []
    for number, setting in enumerate(("false", "true")):
        run = create_run(f"t{number}", root=tmp_path)
        trainer(manifest, f"model.checkpointing={setting}", "train.learning_rate=0.01").fit(run)
        runs.append(load_trained(run, "last").model.state_dict())
    for name, tensor in runs[0].items():
        assert torch.allclose(tensor.double(), runs[1][name].double(), rtol=1e-3, atol=1e-4), name


def test_an_invalid_weights_file_is_rejected(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(UserError) as error:
        trainer(manifest, f"model.init='{tmp_path / 'x.pth'}'")
    assert "x.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_resumed_run_does_not_need_its_initial_weights(
    tiny_run: Run, manifest: Manifest, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial = tmp_path / "initial.safetensors"
    shutil.copy(tiny_run.checkpoints / "best" / WEIGHTS, initial)
    recipe = load_recipe(
        "ssv2-resnet3d18", (*TINY_SETTINGS, f"data.root='{tiny_set}'", f"model.init='{initial}'", "train.epochs=2")
    )
    run = create_run("started", root=tmp_path / "runs")
    stopped = Trainer(recipe, manifest)
    monkeypatch.setattr(stopped.training_step, "optimizer_step", stop_after(3, stopped.training_step.optimizer_step))
    with pytest.raises(Stopped):
        stopped.fit(run)
    initial.unlink()
    done = ssv2rt("train", "--resume", run.path)
    assert done.returncode == 0 and "epoch 2/2" in done.stderr, done
    gone = ssv2rt("train", run.recipe_file, "--name", "again", cwd=tmp_path)
    assert gone.returncode == 2 and "no such file" in gone.stderr and not (tmp_path / "runs" / "again").exists()


def stop_after(steps: int, function: Callable[..., None]) -> Callable[..., None]:
    """The same function, which at this call sends the process a signal to stop."""
    calls = 0

    def wrapped(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGTERM)
        function(*arguments)

    return wrapped
