"""What a step does: mixing, averaging, counting, and several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe, Train
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.weights import load_trained
from ssv2rt.training.confusion import read_confusion
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.mixup import mix
from ssv2rt.training.optimizer import scaled_rate
from ssv2rt.training.step import RunningMetrics, TrainingStep
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS
from tests.training import test_devices as devices


def recipe(*overrides: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *overrides))


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def random_clips(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, 10, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.floats(0.1, 5), st.integers(1, 50), st.integers(0, 99))
def test_mixup_blends_and_says_how_much(count: int, alpha: float, epoch: int, step: int) -> None:
    clips, labels = random_clips(count), torch.arange(count)
    mixed = mix(clips, labels, Train(mixup=alpha), epoch=epoch, step=step)
    expected = mixed.share * clips.double() + (1 - mixed.share) * clips.flip(0).double()
    assert mixed.clips.dtype == torch.uint8 and 0 <= mixed.share <= 1
    assert (mixed.clips.double() - expected).abs().max() <= 0.5 + 1e-9
    assert torch.equal(mixed.labels, labels) and torch.equal(mixed.others, labels.flip(0))
    again = mix(clips, labels, Train(mixup=alpha), epoch=epoch, step=step)
    assert torch.equal(again.clips, mixed.clips) and again.share == mixed.share


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.floats(0.1, 5), st.integers(0, 99))
def test_cutmix_pastes_a_rectangle_and_says_how_large(count: int, alpha: float, step: int) -> None:
    clips = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(count, 3, 10, 12, 3)
    mixed = mix(clips, torch.arange(count), Train(cutmix=alpha), epoch=1, step=step)
    for number in range(count):
        own = (mixed.clips[number] == number).double().mean().item()
        other = (mixed.clips[number] == count - 1 - number).double().mean().item()
        assert own == pytest.approx(1.0 if number == count - 1 - number else mixed.share)
        assert own == other == 1 or own + other == pytest.approx(1)


def test_nothing_is_mixed_unless_asked_for() -> None:
    clips, labels = random_clips(4), torch.arange(4)
    for unmixed in (
        mix(clips, labels, Train(), epoch=1, step=0),
        mix(clips[:1], labels[:1], Train(mixup=1.0), epoch=1, step=0),
    ):
        assert unmixed.share == 1 and torch.equal(unmixed.clips, clips[: len(unmixed.clips)])


def test_tally_is_the_mean_over_clips() -> None:
    metrics = RunningMetrics(torch.device("cpu"))
    metrics.add(torch.tensor(2.0), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    metrics.add(torch.tensor(5.0), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metrics.read() == (3.0, pytest.approx(200 / 3)) and metrics.values[0, 2] == 3


def test_the_average_is_what_is_evaluated_and_kept(manifest: Manifest, tmp_path: Path) -> None:
    work = Trainer(recipe("train.ema=0.5", "train.learning_rate=0.01"), manifest)
    start = {name: p.detach().clone() for name, p in work.training_step.model.named_parameters()}
    seen: list[dict[str, torch.Tensor]] = []
    update = work.training_step.update

    def watched(rate: float, where: str) -> None:
        update(rate, where)
        seen.append({name: p.detach().clone() for name, p in work.training_step.model.named_parameters()})

    work.training_step.update = watched  # type: ignore[method-assign]
    run = create_run("t", root=tmp_path)
    work.fit(run)
    average = seen[0]
    for weights in seen[1:]:
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
    kept = dict(load_trained(run).model.named_parameters())
    for name, value in average.items():
        assert torch.allclose(kept[name], value, atol=1e-6), name
    assert any(not torch.equal(start[name], kept[name]) for name in start)


def after_overflows(count: int, optimizer: str) -> TrainingStep:
    """Training in fp16: first so many updates whose gradients are infinite, then three whose gradients are not."""
    work = devices.training_step("cpu", "fp16", optimizer=optimizer)
    parameters = list(work.model.parameters())

    def spoil(*_: object) -> None:
        """Leaves NaN in the free memory from which an optimiser takes its own."""
        blocks = [torch.full_like(p, torch.nan) for p in parameters for _ in range(2)]
        del blocks

    work.optimizer.register_step_pre_hook(spoil)
    clips, labels = devices.batch("cpu")
    work.scaler.scale(torch.zeros(()))  # without which it has no scale to be changed
    for step in range(count + 3):
        work.scaler.update(2.0**40 if step < count else 2.0**10)
        work.backward(clips, labels, epoch=1, step=step, last=True)
        infinite = not all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        before = [p.detach().clone() for p in parameters]
        work.update(0.01, "here")
        changed = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert infinite == (step < count) and changed != infinite
    return work


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_steps_that_overflow_in_fp16_leave_nothing_behind(optimizer: str) -> None:
    work, reference = after_overflows(3, optimizer), after_overflows(0, optimizer)
    assert work.optimizer.defaults["fused"] is True  # else the scaler waits for the GPU at each step
    pairs = list(zip(work.model.parameters(), reference.model.parameters(), strict=True))
    for ours, theirs in pairs:
        assert ours.isfinite().all() and torch.equal(ours, theirs)
        state, expected = work.optimizer.state[ours], reference.optimizer.state[theirs]
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert value.isfinite().all() and torch.equal(value, expected[name]), name
    names = {name for ours, _ in pairs for name in work.optimizer.state[ours]}
    assert names == ({"momentum_buffer"} if optimizer == "sgd" else {"step", "exp_avg", "exp_avg_sq"})


def test_the_rate_grows_with_the_processes_as_the_recipe_says() -> None:
    rates = {rule: scaled_rate(Train(learning_rate=0.1, scale_rate=rule), 4) for rule in ("linear", "sqrt", "none")}  # type: ignore[arg-type]
    assert rates == {"linear": pytest.approx(0.4), "sqrt": pytest.approx(0.2), "none": 0.1}


DISTRIBUTED = (
    "train.epochs=2",
    "train.learning_rate=0.001",
    "train.log_every=1",
    "augment.color=0",
    "train.seed=3",
)


def torchrun(processes: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, "-m", "ssv2rt", "train", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_train_and_evaluate_as_one(manifest: Manifest, tiny_set: Path, tmp_path: Path) -> None:
    """With batch norm over both and half the batch each, every loss agrees, and evaluation has every clip once."""
    shared = [word for setting in (*TINY_SETTINGS, *DISTRIBUTED) for word in ("--set", setting)]
    done = torchrun(
        2,
        *("--data", str(tiny_set), "--name", "two", *shared),
        *("--set", "train.batch_size=5", "--set", "train.scale_rate=none", "--set", "train.sync_bn=true"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "runs" / "two")
    assert done.stderr.count("epoch 1/2: loss") == 1  # one process talks
    lines = read_metrics(two.metrics_file)
    epochs = [line for line in lines if "validation" in line]
    assert [line["validation"]["clips"] for line in epochs] == [10, 10]
    assert read_confusion(two.confusion_file, manifest.labels).sum() == 10
    one = create_run("one", root=tmp_path)
    Trainer(recipe(*DISTRIBUTED, "train.batch_size=10"), manifest).fit(one)
    alone = read_metrics(one.metrics_file)
    assert len(lines) == len(alone) > 10
    for theirs, mine in zip(lines, alone, strict=True):
        # So small a network magnifies rounding a hundredfold from one update to the next, in one process as well.
        near = 1e-5 if mine["update"] <= 4 else 0.05
        for name in {"loss", "learning_rate", "train_loss"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=near), (theirs, mine)
    # The same weights evaluated by one process.
    from ssv2rt.training.evaluate import evaluate

    trained = load_trained(two, "last")
    again = evaluate(
        trained.model.channels_last(),
        manifest.split("validation"),
        trained.recipe,
        device=torch.device("cpu"),
        precision="fp32",
    )
    last = epochs[-1]["validation"]
    assert (again.top1, again.top5, again.clips) == (last["top1"], last["top5"], last["clips"])
    assert again.loss == pytest.approx(last["loss"], rel=1e-5)
    resumed = torchrun(1, "--resume", "two", cwd=tmp_path)
    assert resumed.returncode != 0 and "was trained with 2 processes, and there are 1 now" in resumed.stderr


def test_shards_of_an_update_are_the_single_process_update(manifest: Manifest) -> None:
    """The mean gradient of two shards is that of the whole batch, without batch statistics."""
    from ssv2rt.pipelines.samplers import Shard, train_batches

    gradients = []
    for batch, shards in ((8, 1), (4, 2)):
        work = Trainer(recipe(f"train.batch_size={batch}"), manifest)
        work.training_step.model.eval()
        for index in range(shards):
            batches = work.loader.batches(train_batches(work.train, work.recipe, epoch=1, shard=Shard(index, shards)))
            made = next(batches)
            work.training_step.backward(made.clips, made.labels, epoch=1, step=0, last=True)
        gradients.append(
            np.concatenate(
                [p.grad.numpy().ravel() / shards for p in work.training_step.model.parameters() if p.grad is not None]
            )
        )
    assert np.allclose(*gradients, atol=1e-4 * np.abs(gradients[0]).max())
