"""Training on a GPU and on a CPU: precisions, EMA weights, synchronization, and deterministic resume."""

from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssv2rt.core.hardware import Precision
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Model, Recipe, Train
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.training.distributed import Group
from ssv2rt.training.step import TrainingStep
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS

ON_GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
SETTINGS = (*TINY_SETTINGS, "train.epochs=2", "train.deterministic=true", "train.ema=0.9", "model.dropout=0.3")


def group(device: str) -> Group:
    return Group(0, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))


def recipe(*overrides: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*SETTINGS, *overrides))


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def training_step(device: str, precision: Precision, **settings: object) -> TrainingStep:
    torch.manual_seed(0)
    model = build_model(Model(width=8, dropout=0.0), 5).channels_last().to(group(device).device)
    return TrainingStep(model.train(), Train.model_validate(settings), precision, group(device))


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (10, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return clips.to(device), (torch.arange(10) % 5).to(device)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "fp32"),
        ("cpu", "bf16"),
        pytest.param("cuda", "fp32", marks=ON_GPU),
        pytest.param("cuda", "bf16", marks=ON_GPU),
        pytest.param("cuda", "fp16", marks=ON_GPU),
    ],
)
def test_each_precision_overfits_one_batch(device: str, precision: Precision) -> None:
    work = training_step(device, precision, optimizer="adamw", learning_rate=0.003, clip_norm=5.0)
    clips, labels = batch(device)
    losses = []
    for step in range(30):
        work.backward(clips, labels, epoch=1, step=step, last=True)
        work.optimizer_step(0.003, "here")
        losses.append(work.metrics.read()[0])
        work.metrics.values.zero_()
    work.check_pending()
    assert losses[-1] < 0.3 * losses[0], losses
    assert all(p.dtype == torch.float32 and p.grad is None for p in work.model.parameters())
    weight = work.model.backbone.layer1[0].conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("device", DEVICES)
def test_ema_weights_equal_those_of_averaged_model(device: str) -> None:
    work = training_step(device, "fp32", ema=0.9)
    reference = AveragedModel(work.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    clips, labels = batch(device)
    for step in range(4):
        work.backward(clips, labels, epoch=1, step=step, last=True)
        work.optimizer_step(0.05, "here")
        reference.update_parameters(work.model)
    assert work.ema_model is not None and int(work.ema_model.n_averaged) == 4
    for ours, theirs in zip(work.ema_model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_an_infinite_gradient_in_fp16_skips_the_step_and_lowers_the_scale() -> None:
    work = training_step("cuda", "fp16")
    clips, labels = batch("cuda")
    work.backward(clips, labels, epoch=1, step=0, last=True)
    work.optimizer_step(0.0, "here")
    work.scaler.update(2.0**40)  # so that the next gradients overflow in fp16
    before = [p.detach().clone() for p in work.model.parameters()]
    work.backward(clips, labels, epoch=1, step=1, last=True)
    work.optimizer_step(0.1, "here")
    assert all(torch.equal(a, b) for a, b in zip(before, work.model.parameters(), strict=True))
    assert work.scaler.get_scale() < 2.0**40


@pytest.mark.gpu
def test_a_step_does_not_synchronize_with_the_gpu() -> None:
    work = training_step("cuda", "bf16", clip_norm=5.0, ema=0.9, mixup=0.4)
    clips, labels = batch("cuda")
    for step in range(6):
        if step == 3:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")  # PyTorch then raises an error at each synchronization
        try:
            work.backward(clips, labels, epoch=1, step=step, last=True)
            work.optimizer_step(0.01, "here")
        except RuntimeError:
            torch.cuda.set_sync_debug_mode("default")
            raise
    torch.cuda.set_sync_debug_mode("default")
    work.check_pending()


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), pytest.param("cuda", "bf16", marks=ON_GPU), pytest.param("cuda", "fp16", marks=ON_GPU)],
)
def test_a_resumed_deterministic_run_equals_an_uninterrupted_one(
    device: str, precision: str, manifest: Manifest, tmp_path: Path
) -> None:
    chosen = recipe(f"train.precision={precision}")
    uninterrupted, resumed_run = create_run("whole", root=tmp_path), create_run("parts", root=tmp_path)
    Trainer(chosen, manifest, group(device)).fit(uninterrupted)
    first = Trainer(chosen, manifest, group(device))
    stop_after_an_epoch(first, resumed_run)
    again = Trainer(chosen, manifest, group(device))
    again.resume(resumed_run)
    assert again.epoch == 1
    again.fit(resumed_run)
    ours, theirs = (
        torch.load(run.checkpoints / "last" / "state.pt", weights_only=True) for run in (uninterrupted, resumed_run)
    )
    for name in ("model", "average"):
        for key, value in ours[name].items():
            assert torch.equal(value, theirs[name][key]), key


def stop_after_an_epoch(work: Trainer, run: Run) -> None:
    class StopTraining(Exception):
        pass

    save = work.save

    def save_and_stop(run: Run, *, best: bool) -> None:
        save(run, best=best)
        raise StopTraining

    work.save = save_and_stop  # type: ignore[method-assign]
    with pytest.raises(StopTraining):
        work.fit(run)


@pytest.mark.gpu
def test_deterministic_training_does_not_time_decoders(manifest: Manifest) -> None:
    assert Trainer(recipe(), manifest, group("cuda")).loader._tell is None
    plain = Trainer(recipe("train.deterministic=false"), manifest, group("cuda"))
    assert plain.loader._tell is not None and plain.validation_loader._tell is None
