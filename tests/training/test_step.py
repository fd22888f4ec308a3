"""The training step: mixup, EMA weights, metrics, fp16 overflows, and several processes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Model, Recipe, Train
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.training.confusion import read_confusion
from ssv2rt.training.distributed import Group
from ssv2rt.training.evaluate import evaluate
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.mixup import mix
from ssv2rt.training.optimizer import scaled_learning_rate
from ssv2rt.training.step import RunningMetrics, TrainingStep
from ssv2rt.training.trainer import Trainer
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS
from tests.training import test_devices as devices
from tests.training.nodes import Nodes


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
def test_mixup_blends_clips_with_the_returned_weight(count: int, alpha: float, epoch: int, step: int) -> None:
    clips, labels = random_clips(count), torch.arange(count)
    mixed = mix(clips, labels, Train(mixup=alpha), epoch=epoch, step=step)
    expected = mixed.own_weight * clips.double() + (1 - mixed.own_weight) * clips.flip(0).double()
    assert mixed.clips.dtype == torch.uint8 and 0 <= mixed.own_weight <= 1
    assert (mixed.clips.double() - expected).abs().max() <= 0.5 + 1e-9
    assert torch.equal(mixed.labels, labels) and torch.equal(mixed.other_labels, labels.flip(0))
    again = mix(clips, labels, Train(mixup=alpha), epoch=epoch, step=step)
    assert torch.equal(again.clips, mixed.clips) and again.own_weight == mixed.own_weight


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.floats(0.1, 5), st.integers(0, 99))
def test_cutmix_pastes_a_rectangle_of_the_returned_size(count: int, alpha: float, step: int) -> None:
    clips = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(count, 3, 10, 12, 3)
    mixed = mix(clips, torch.arange(count), Train(cutmix=alpha), epoch=1, step=step)
    for number in range(count):
        own = (mixed.clips[number] == number).double().mean().item()
        other = (mixed.clips[number] == count - 1 - number).double().mean().item()
        assert own == pytest.approx(1.0 if number == count - 1 - number else mixed.own_weight)
        assert own == other == 1 or own + other == pytest.approx(1)


def test_nothing_is_mixed_without_the_settings_or_with_one_clip() -> None:
    clips, labels = random_clips(4), torch.arange(4)
    for unmixed in (
        mix(clips, labels, Train(), epoch=1, step=0),
        mix(clips[:1], labels[:1], Train(mixup=1.0), epoch=1, step=0),
    ):
        assert unmixed.own_weight == 1 and torch.equal(unmixed.clips, clips[: len(unmixed.clips)])


def test_running_metrics_are_means_over_clips() -> None:
    metrics = RunningMetrics(torch.device("cpu"))
    metrics.add(torch.tensor(2.0), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    metrics.add(torch.tensor(5.0), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metrics.read() == (3.0, pytest.approx(200 / 3)) and metrics.values[0, 2] == 3


def test_ema_weights_are_evaluated_and_saved(manifest: Manifest, tmp_path: Path) -> None:
    work = Trainer(recipe("train.ema=0.5", "train.learning_rate=0.01"), manifest)
    start = {name: p.detach().clone() for name, p in work.training_step.model.named_parameters()}
    seen: list[dict[str, torch.Tensor]] = []
    optimizer_step = work.training_step.optimizer_step

    def step_and_record(learning_rate: float, where: str) -> None:
        optimizer_step(learning_rate, where)
        seen.append({name: p.detach().clone() for name, p in work.training_step.model.named_parameters()})

    work.training_step.optimizer_step = step_and_record  # type: ignore[method-assign]
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
    """Trains in fp16: `count` optimizer steps with infinite gradients, then three with finite ones."""
    work = devices.training_step("cpu", "fp16", optimizer=optimizer)
    parameters = list(work.model.parameters())

    def fill_free_memory_with_nan(*_: object) -> None:
        """Leaves NaN in freed memory, from which the optimizer allocates its state."""
        blocks = [torch.full_like(p, torch.nan) for p in parameters for _ in range(2)]
        del blocks

    work.optimizer.register_step_pre_hook(fill_free_memory_with_nan)
    clips, labels = (part[:2] for part in devices.batch("cpu"))  # fp16 is slow on CPUs
    work.scaler.scale(torch.zeros(()))  # the first call initializes the scale
    for step in range(count + 3):
        work.scaler.update(2.0**40 if step < count else 2.0**10)
        work.backward(clips, labels, epoch=1, step=step, last=True)
        infinite = not all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        before = [p.detach().clone() for p in parameters]
        work.optimizer_step(0.01, "here")
        changed = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert infinite == (step < count) and changed != infinite
    return work


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_steps_that_overflow_in_fp16_do_not_affect_the_optimizer_state(optimizer: str) -> None:
    work, reference = after_overflows(3, optimizer), after_overflows(0, optimizer)
    assert work.optimizer.defaults["fused"] is True  # otherwise the scaler would synchronize with the GPU at each step
    pairs = list(zip(work.model.parameters(), reference.model.parameters(), strict=True))
    for ours, theirs in pairs:
        assert ours.isfinite().all() and torch.equal(ours, theirs)
        state, expected = work.optimizer.state[ours], reference.optimizer.state[theirs]
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert value.isfinite().all() and torch.equal(value, expected[name]), name
    names = {name for ours, _ in pairs for name in work.optimizer.state[ours]}
    assert names == ({"momentum_buffer"} if optimizer == "sgd" else {"step", "exp_avg", "exp_avg_sq"})


def test_the_learning_rate_is_scaled_with_the_world_size() -> None:
    rates = {
        rule: scaled_learning_rate(Train(learning_rate=0.1, scale_rate=rule), 4) for rule in ("linear", "sqrt", "none")
    }  # type: ignore[arg-type]
    assert rates == {"linear": pytest.approx(0.4), "sqrt": pytest.approx(0.2), "none": 0.1}


@pytest.fixture
def alone_with_ddp() -> Iterator[None]:
    """A process group of this process, which may take itself for one of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone_with_ddp")
def test_all_processes_may_stop_after_the_same_batches_of_an_evaluation(manifest: Manifest) -> None:
    """Nine clips in batches of four: two processes have two batches and one."""
    rows = manifest.table.filter(pc.equal(manifest.table["split"], "validation")).slice(1)
    split = replace(manifest, table=rows).split("validation")
    cpu, seen = torch.device("cpu"), []
    for rank in (0, 1):
        batches: list[int] = []
        stops: list[int] = []
        evaluate(
            build_model(Model(width=4), 10),
            split,
            recipe("train.batch_size=4"),
            device=cpu,
            precision="fp32",
            group=Group(rank, 2, cpu),
            after_each_batch=partial(stops.append, 1),
            record=lambda batch, logits, batches=batches: batches.append(len(batch.requests)),
        )
        seen.append((batches, len(stops)))
    assert seen == [([4, 1], 1), ([4], 1)]


@pytest.mark.usefixtures("alone_with_ddp")
def test_a_step_without_a_clip_changes_nothing() -> None:
    """Every clip of it was bad: in a single process, also with the gradient scaler, and with DDP, from the first batch on."""
    work = devices.training_step("cpu", "fp16", ema=0.9)
    clips, labels = devices.batch("cpu")
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    work.backward(clips[:0], labels[:0], epoch=1, step=0, last=True)
    work.optimizer_step(0.1, "here")
    assert all(torch.equal(value, before[name]) for name, value in work.model.state_dict().items())
    several = TrainingStep(work.model, work.settings, "fp32", Group(0, 2, torch.device("cpu")))
    several.backward(clips[:0], labels[:0], epoch=1, step=0, last=True)
    assert all(p.grad is not None and not p.grad.any() for p in work.model.parameters())
    for name, value in work.model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked"), name
    assert several.metrics.read() == (0, 0)


DISTRIBUTED = (
    "train.epochs=2",
    "train.learning_rate=0.001",
    "train.log_every=1",
    "train.precise_bn=2",
    "augment.color=0",
    "train.seed=3",
)


def test_two_processes_train_and_evaluate_like_one(manifest: Manifest, tiny_set: Path, tmp_path: Path) -> None:
    """With SyncBatchNorm and half the batch each, every loss agrees, and evaluation counts every clip once.

    The processes are on two nodes that share nothing but the data.
    """
    shared = [word for setting in (*TINY_SETTINGS, *DISTRIBUTED) for word in ("--set", setting)]
    nodes = Nodes(tmp_path)
    codes, said = nodes.run(
        *("ssv2-resnet3d18", "--data", tiny_set, "--name", "two", *shared),
        *("--set", "train.batch_size=5", "--set", "train.scale_rate=none", "--set", "train.sync_bn=true"),
    )
    assert codes == [0, 0], said
    two = Run(nodes.folders[0] / "runs" / "two")
    assert "epoch 1/2: loss" in said[0] and "epoch" not in said[1]  # only rank 0 logs
    assert not (nodes.folders[1] / "runs").exists()
    lines = read_metrics(two.metrics_file)
    epochs = [line for line in lines if "validation" in line]
    assert [line["validation"]["clips"] for line in epochs] == [10, 10]
    assert read_confusion(two.confusion_file, manifest.labels).sum() == 10
    one = create_run("one", root=tmp_path)
    Trainer(recipe(*DISTRIBUTED, "train.batch_size=10"), manifest).fit(one)
    alone = read_metrics(one.metrics_file)
    assert len(lines) == len(alone) > 10
    for theirs, mine in zip(lines, alone, strict=True):
        # In such a small network, rounding errors grow a hundredfold with each optimizer step, even in one process.
        tolerance = {1: 1e-5, 2: 1e-5, 3: 1e-3}.get(mine["update"], 0.05)
        for name in {"loss", "learning_rate", "train_loss"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=tolerance), (theirs, mine)
    # Evaluate the same weights in one process.
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
    resumed = ssv2rt("train", "--resume", "two", cwd=nodes.folders[0])
    assert resumed.returncode == 1 and "was trained with 2 processes, and there are 1 now" in resumed.stderr


def test_gradients_of_two_shards_equal_those_of_the_whole_batch(manifest: Manifest) -> None:
    """The mean gradient of two shards is that of the whole batch, without batch statistics."""
    from ssv2rt.pipelines.samplers import Shard, train_batches

    gradients = []
    for batch, shards in ((8, 1), (4, 2)):
        work = Trainer(recipe(f"train.batch_size={batch}"), manifest)
        work.training_step.model.eval()
        for index in range(shards):
            batches = work.loader.batches(
                train_batches(work.train_split, work.recipe, epoch=1, shard=Shard(index, shards))
            )
            made = next(batches)
            work.training_step.backward(made.clips, made.labels, epoch=1, step=0, last=True)
        gradients.append(
            np.concatenate(
                [p.grad.numpy().ravel() / shards for p in work.training_step.model.parameters() if p.grad is not None]
            )
        )
    assert np.allclose(*gradients, atol=1e-4 * np.abs(gradients[0]).max())
