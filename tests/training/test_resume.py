"""Going on with a run: to the last bit, after a kill, a signal, or in the middle of an evaluation."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from ssv2rt.training.checkpoint import STATE
from ssv2rt.training.signals import Stopped
from ssv2rt.training.trainer import Trainer
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
)


def recipe(*changes: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*SETTINGS, *changes))


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


@pytest.fixture(scope="module")
def whole(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing interrupted: 2 epochs of 16 steps."""
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
    """Weights, averages, optimiser, random state and metrics, to the last bit."""
    states = [torch.load(run.checkpoints / "last" / STATE, weights_only=True) for run in (a, b)]
    for key in states[0]:
        if key != "recipe":  # names the data's folder
            assert equal(states[0][key], states[1][key]), key
    for which in ("best", "last"):
        files = [(run.checkpoints / which).resolve() / "weights.safetensors" for run in (a, b)]
        assert files[0].parent.name == files[1].parent.name
    assert a.metrics_file.read_text() == b.metrics_file.read_text()


def stop_at(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *, updates: int) -> None:
    """Sends this process a SIGTERM after so many changes of the weights."""
    change = trainer._optimizer_step

    def counted() -> None:
        change()
        if trainer.update == updates:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_optimizer_step", counted)


@pytest.mark.parametrize("updates", [3, 8, 13])
def test_stopped_and_resumed_is_as_never_stopped(
    manifest: Manifest, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """Within the first epoch, at its end, and within the second."""
    run = create_run("t", root=tmp_path)
    first = Trainer(recipe(), manifest)
    stop_at(first, monkeypatch, updates=updates)
    with pytest.raises(Stopped, match=r"by SIGTERM after epoch \d, step \d+; go on with .*resume t-") as stopped:
        first.fit(run)
    assert stopped.value.exit_code == 143
    torch.manual_seed(99)
    second = Trainer(recipe(), manifest)
    second.resume(run)
    assert second.update == updates
    second.fit(run)
    assert_same(whole, run)


def test_stopped_while_evaluating(
    manifest: Manifest, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert (second.epoch, second.step) == (0, second.steps)
    second.fit(run)
    assert_same(whole, run)


@pytest.fixture
def at_home(tmp_path: Path, tiny_set: Path) -> Path:
    shutil.copytree(tiny_set, tmp_path / "data")
    return tmp_path


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    new = [] if "--resume" in arguments else settings
    return subprocess.Popen(
        [sys.executable, "-m", "ssv2rt", "train", *arguments, *new],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_between_two_steps(at_home: Path, whole: Run) -> None:
    """A real kill -9, in the second epoch, and the run gone on with by the command line."""
    process = command("--data", "data", "--name", "t", "--set", "train.checkpoint_minutes=0.0001", cwd=at_home)
    run = Run(at_home / "runs" / "t")
    until = time.monotonic() + 120
    while not list(run.checkpoints.glob("epoch-0002-step-*")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert (run.checkpoints / "last").resolve().name != "epoch-0002"  # it was not at its end
    again = command("--resume", cwd=at_home)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert_same(whole, run)
    finished = command("--resume", "t", "--json", cwd=at_home)
    out, err = finished.communicate()
    assert finished.returncode == 0 and json.loads(out)["clips"] == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_end_with_their_code(at_home: Path, number: int, code: int) -> None:
    process = command("--data", "data", "--name", "t", "--set", "train.epochs=200", cwd=at_home)
    run = Run(at_home / "runs" / "t")
    while not (run.checkpoints / "best").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err and "go on with `ssv2rt train --resume t`" in err.splitlines()[-1]
    state = torch.load(run.checkpoints / "last" / STATE, weights_only=True)
    assert state["update"] > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("train.learning_rate=0.5",), "train.learning_rate was 0.02, and is 0.5"),
        (("model.width=8",), "model.width was 4, and is 8"),
        (("clip.frames=5", "augment.erase=0.1"), "clip.frames was 4, and is 5; augment.erase was 0.3, and is 0.1"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference(
    manifest: Manifest, whole: Run, changes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Trainer(recipe(*changes), manifest).resume(whole)


def test_other_classes_are_refused(manifest: Manifest, whole: Run) -> None:
    labels = list(manifest.labels)
    other = replace(manifest, labels=(*labels[:3], "Folding", *labels[4:]))
    with pytest.raises(UserError, match=f"are not those of run .*: class 3 is 'Folding' here, and '{labels[3]}' there"):
        Trainer(recipe(), other).resume(whole)
    with pytest.raises(UserError, match="there are 11 here, and 10 there"):
        Trainer(recipe(), replace(manifest, labels=(*labels, "Folding"))).resume(whole)


def test_what_changes_no_result_may_be_changed(manifest: Manifest, whole: Run) -> None:
    Trainer(recipe("data.threads=3", "train.checkpoint_minutes=1"), manifest).resume(whole)


def test_damaged_and_missing_checkpoints_are_refused(manifest: Manifest, whole: Run, tmp_path: Path) -> None:
    trainer = Trainer(recipe(), manifest)
    with pytest.raises(UserError, match="has no checkpoint to go on from"):
        trainer.resume(create_run("new", root=tmp_path))
    copy = Run(tmp_path / "copy")
    shutil.copytree(whole.path, copy.path, symlinks=True)
    state = copy.checkpoints / "last" / STATE
    content = state.read_bytes()
    for damaged in (b"", content[:1000], b"\x80\x04junk", content[: len(content) // 2]):
        state.write_bytes(damaged)
        with pytest.raises(UserError, match="not a checkpoint of ssv2rt, or damaged"):
            trainer.resume(copy)
