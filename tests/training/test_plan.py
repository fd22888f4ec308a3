"""The figures of `ssv2rt train --dry-run`."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.models.registry import build_model
from ssv2rt.training.plan import matmul_flops_per_second, training_flops
from tests.cli import ssv2rt

SMALL = ("clip.frames=4", "clip.size=32", "model.width=8")


def test_flops_of_training_are_counted_for_one_clip() -> None:
    recipe = load_recipe("ssv2-resnet3d18", SMALL)
    clip = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build_model(recipe.model, 10).eval()(clip)
    forward = counter.get_total_flops()
    # The backward pass computes the gradients of the inputs and of the weights, each as costly as the forward pass.
    assert training_flops(recipe, 10) == pytest.approx(3 * forward, rel=0.05)
    frozen = load_recipe("ssv2-resnet3d18", (*SMALL, "train.freeze_backbone=true"))
    assert training_flops(frozen, 10) == pytest.approx(forward, rel=0.05)
    checkpointed = load_recipe("ssv2-resnet3d18", (*SMALL, "model.checkpointing=true"))
    assert training_flops(checkpointed, 10) > 3.5 * forward  # computes most activations twice


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert matmul_flops_per_second(torch.device("cpu"), "fp32") > 1e6


def test_a_plan_needs_no_weights_that_training_would_download(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    small = [word for setting in SMALL for word in ("--set", setting)]
    plan = ("train", "ssv2-tsm-r50-8f", "--data", tiny_set, "--dry-run", *small)
    done = ssv2rt(*plan, cwd=tmp_path)
    assert done.returncode == 0 and "optimizer steps" in done.stdout, done
    assert "'resnet50' is not on this machine yet: training will download https://" in done.stderr
    gone = ssv2rt(*plan, "--init", "gone.pth", cwd=tmp_path)
    assert gone.returncode == 2 and "'gone.pth': no such file" in gone.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()
