"""Resume: bit-identical results after a kill, a signal, or a stop during evaluation."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.training.checkpoint import STATE, load_state
from ssv2rt.training.signals import Stopped
from ssv2rt.training.trainer import Trainer
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS

SETTINGS = (
    *TINY_SETTINGS,
    "train.epochs=2",
    "train.batch_size=4",
    "train.accumulate=2",
    "train.learning_rate=0.02",
    "train.ema=0.9",
    "train.log_every=3",
    "train.mixup=0.4",
    "train.cutmix=1.0",
    "model.dropout=0.3",
    "augment.erase=0.3",
    "augment.rand_layers=2",
)


def recipe(*changes: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*SETTINGS, *changes))


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


@pytest.fixture(scope="module")
def uninterrupted(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run: 2 epochs of 16 steps."""
    run = create_run("whole", root=tmp_path_factory.mktemp("runs"))
    Trainer(recipe(), manifest).fit(run)
    return run


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same(a: Run, b: Run) -> None:
    """Asserts that weights, EMA weights, optimizer, random state and metrics are bit-identical."""
    states = [torch.load(run.checkpoints / "last" / STATE, weights_only=True) for run in (a, b)]
    for key in states[0]:
        if key != "recipe":  # contains the folder of the data, which differs
            assert equal(states[0][key], states[1][key]), key
    for which in ("best", "last"):
        files = [(run.checkpoints / which).resolve() / "weights.safetensors" for run in (a, b)]
        assert files[0].parent.name == files[1].parent.name
    assert a.metrics_file.read_text() == b.metrics_file.read_text()


def stop_at(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *, updates: int) -> None:
    """Sends this process a SIGTERM after a number of optimizer steps."""
    optimizer_step = trainer._optimizer_step

    def step_and_signal() -> None:
        optimizer_step()
        if trainer.optimizer_steps == updates:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_optimizer_step", step_and_signal)


@pytest.mark.parametrize("updates", [3, 8, 13])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    manifest: Manifest, uninterrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """Within the first epoch, at its end, and within the second."""
    run = create_run("t", root=tmp_path)
    first = Trainer(recipe(), manifest)
    stop_at(first, monkeypatch, updates=updates)
    saved = r"by SIGTERM, and everything is saved: \d of 2 epochs.*; continue with .*resume t"
    with pytest.raises(Stopped, match=saved) as stopped:
        first.fit(run)
    assert stopped.value.exit_code == 143
    torch.manual_seed(99)
    second = Trainer(recipe(), manifest)
    second.resume(run)
    assert second.optimizer_steps == updates
    second.fit(run)
    assert_same(uninterrupted, run)


def test_a_run_stopped_during_evaluation_can_be_resumed(
    manifest: Manifest, uninterrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssv2rt.training import trainer as module

    run = create_run("t", root=tmp_path)
    evaluate = module.evaluate

    def signalled(*arguments: object, **named: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluate", signalled)
    with pytest.raises(Stopped) as stopped:
        Trainer(recipe(), manifest).fit(run)
    assert stopped.value.exit_code == 130
    monkeypatch.setattr(module, "evaluate", evaluate)
    second = Trainer(recipe(), manifest)
    second.resume(run)
    assert (second.epoch, second.step) == (0, second.steps_per_epoch)
    second.fit(run)
    assert_same(uninterrupted, run)


@pytest.fixture
def folder_with_data(tmp_path: Path, tiny_set: Path) -> Path:
    shutil.copytree(tiny_set, tmp_path / "data")
    return tmp_path


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Training in a process of its own, to be killed or signalled."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "ssv2rt", "train", *arguments, *settings],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until something holds, as long as a process runs."""
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until and (process is None or process.poll() is None)
        time.sleep(0.005)


def test_a_run_killed_between_two_steps_can_be_resumed(folder_with_data: Path, uninterrupted: Run) -> None:
    """SIGKILL in the second epoch, then resume by the command line."""
    process = start(
        "ssv2-resnet3d18",
        "--data",
        "data",
        "--name",
        "t",
        "--set",
        "train.checkpoint_minutes=0.0001",
        cwd=folder_with_data,
    )
    run = Run(folder_with_data / "runs" / "t")
    until = time.monotonic() + 120
    while not list(run.checkpoints.glob("epoch-0002-step-*")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert (run.checkpoints / "last").resolve().name != "epoch-0002"  # killed within the epoch
    again = ssv2rt("train", "--resume", cwd=folder_with_data)
    assert again.returncode == 0, again.stderr
    assert_same(uninterrupted, run)
    finished = ssv2rt("train", "--resume", "t", "--json", cwd=folder_with_data)
    assert finished.returncode == 0 and json.loads(finished.stdout)["clips"] == 10


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_signals_save_a_checkpoint_and_set_the_exit_code(folder_with_data: Path, number: int, code: int) -> None:
    process = start(
        "ssv2-resnet3d18", "--data", "data", "--name", "t", "--set", "train.epochs=200", cwd=folder_with_data
    )
    run = Run(folder_with_data / "runs" / "t")
    while not (run.checkpoints / "best").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err and "continue with `ssv2rt train --resume t`" in err.splitlines()[-1]
    state = torch.load(run.checkpoints / "last" / STATE, weights_only=True)
    assert state["update"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("train.learning_rate=0.5",), "train.learning_rate was 0.02, and is 0.5"),
        (("model.width=8",), "model.width was 4, and is 8"),
        (("clip.frames=5", "augment.erase=0.1"), "clip.frames was 4, and is 5; augment.erase was 0.3, and is 0.1"),
    ],
)
def test_a_changed_recipe_is_rejected_with_the_difference(
    manifest: Manifest, uninterrupted: Run, changes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(recipe(*changes), manifest).resume(uninterrupted)


def test_other_classes_are_rejected(manifest: Manifest, uninterrupted: Run) -> None:
    labels = list(manifest.labels)
    other = replace(manifest, labels=(*labels[:3], "Folding", *labels[4:]))
    with pytest.raises(UserError, match=f"are not those of run .*: class 3 is 'Folding' here, and '{labels[3]}' there"):
        Trainer(recipe(), other).resume(uninterrupted)
    with pytest.raises(UserError, match="there are 11 here, and 10 there"):
        Trainer(recipe(), replace(manifest, labels=(*labels, "Folding"))).resume(uninterrupted)


def test_settings_that_do_not_affect_the_result_may_change(manifest: Manifest, uninterrupted: Run) -> None:
    Trainer(recipe("data.threads=3", "train.checkpoint_minutes=1"), manifest).resume(uninterrupted)


def test_the_gradient_scaler_of_fp16_goes_on(uninterrupted: Run, tmp_path: Path) -> None:
    def step(scaler: torch.amp.GradScaler) -> dict[str, object]:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight])
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return dict(scaler.state_dict())

    scaler, again = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    run = Run(shutil.copytree(uninterrupted.path, tmp_path / "run", symlinks=True))
    path = run.checkpoints / "last" / STATE
    torch.save(torch.load(path, weights_only=True) | {"scaler": step(scaler)}, path)
    again.load_state_dict(load_state(run, recipe()).scaler)
    assert step(again) == step(scaler)


def test_damaged_and_missing_checkpoints_are_rejected(manifest: Manifest, uninterrupted: Run, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), manifest)
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        trainer.resume(create_run("new", root=tmp_path))
    copy = Run(tmp_path / "copy")
    shutil.copytree(uninterrupted.path, copy.path, symlinks=True)
    state = copy.checkpoints / "last" / STATE
    content = state.read_bytes()
    for damaged in (b"", content[:1000], b"\x80\x04junk", content[: len(content) // 2]):
        state.write_bytes(damaged)
        with pytest.raises(UserError, match="not a checkpoint of ssv2rt, or damaged"):
            trainer.resume(copy)
