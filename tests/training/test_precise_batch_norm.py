"""Batch norm with statistics over training batches."""

from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Model
from ssv2rt.core.run_folders import create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.models.registry import build_model
from ssv2rt.training.precise_batch_norm import measure_batch_norm
from ssv2rt.training.signals import Stopped
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS
from tests.training.test_resume import assert_same, stop_at


def test_statistics_are_the_mean_of_those_of_the_batches() -> None:
    model = build_model(Model(width=4, dropout=0.5), 3)
    clips = torch.randint(0, 256, (3, 2, 4, 32, 32, 3), dtype=torch.uint8)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d))
    norm.running_mean.fill_(9)
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    before, random = norm.momentum, torch.get_rng_state()
    measure_batch_norm(model, [*clips, clips[0][:0]], "fp32")
    hook.remove()
    dims = (0, 2, 3, 4)
    assert torch.allclose(norm.running_mean, torch.stack([x.mean(dims) for x in seen]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([x.var(dims) for x in seen]).mean(0), atol=1e-4)
    assert len(seen) == 3 and norm.momentum == before and not norm.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_run_evaluates_with_measured_statistics_and_resumes_exactly(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_manifest(tiny_set)
    settings = (*TINY_SETTINGS, "train.epochs=2", "train.precise_bn=3", "train.learning_rate=0.01")
    recipe = load_recipe("ssv2-resnet3d18", settings)
    whole, stopped = create_run("whole", root=tmp_path), create_run("stopped", root=tmp_path)
    trainer = Trainer(recipe, manifest)
    trainer.fit(whole)
    tracked = {int(value) for name, value in trainer.model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert tracked == {3}
    first = Trainer(recipe, manifest)
    stop_at(first, monkeypatch, updates=first.optimizer_steps_per_epoch + 2)
    with pytest.raises(Stopped):
        first.fit(stopped)
    second = Trainer(recipe, manifest)
    second.resume(stopped)
    second.fit(stopped)
    assert_same(whole, stopped)


def test_a_frozen_backbone_keeps_its_statistics() -> None:
    with pytest.raises(UsageError, match="a frozen backbone keeps its statistics; leave one of them out"):
        load_recipe("demo", ("train.precise_bn=3", "train.freeze_backbone=true"))
