"""train.batch_size = "auto": the memory estimate, the chosen size, and its record in the run."""

from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.training.batch_size import (
    MAX_CPU_BATCH,
    batch_fits,
    candidate_sizes,
    estimate_step_memory,
    first_fitting,
    resolve_batch_size,
    usable_memory,
)
from ssv2rt.training.distributed import Group
from ssv2rt.training.model_cost import saved_activation_bytes
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS

CPU = Group(0, 1, torch.device("cpu"))
AUTO = ("train.batch_size=auto", "train.update_clips=12")


@pytest.fixture
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *overrides))


def test_candidate_sizes_divide_the_clips_of_an_optimizer_step() -> None:
    assert candidate_sizes(64, torch.device("cuda")) == [64, 32, 16, 8, 4, 2, 1]
    assert candidate_sizes(24, CPU.device) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert candidate_sizes(128, CPU.device)[0] == MAX_CPU_BATCH


@pytest.mark.parametrize(
    "settings", [(), ("model.checkpointing=true",), ("model.name=c3d", "model.temporal_strides=[1,1,1,1]")]
)
def test_estimated_activation_memory_equals_the_real_one(settings: tuple[str, ...]) -> None:
    chosen = recipe(*settings)
    model = build_model(chosen.model, 10).channels_last().train()
    clips = torch.zeros(4, 4, 32, 32, 3, dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    if "model.checkpointing=true" in settings:
        from ssv2rt.models.residual import set_checkpointing

        set_checkpointing(model, True)
    real = [saved_activation_bytes(model, clips[:count], labels[:count].clone()) for count in (3, 4)]
    memory = estimate_step_memory(chosen, 10, "fp32")
    assert memory.per_clip == real[1] - real[0]
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert memory.fixed >= 3 * weights and memory.for_batch(3) - memory.fixed == 3 * memory.per_clip


def test_half_precision_needs_less_memory_and_ema_needs_more() -> None:
    plain = estimate_step_memory(recipe(), 10, "fp32")
    assert estimate_step_memory(recipe(), 10, "bf16").per_clip < 0.7 * plain.per_clip
    assert estimate_step_memory(recipe("train.ema=0.9"), 10, "fp32").fixed > plain.fixed


def test_the_largest_batch_size_that_fits_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    memory = estimate_step_memory(recipe(*AUTO), 10, "fp32")
    for limit, batch in (
        (memory.for_batch(12), 12),
        (memory.for_batch(12) - 1, 6),
        (memory.for_batch(4) + 1, 4),
        (memory.for_batch(1), 1),
    ):
        train = resolve_batch_size(recipe(*AUTO), 10, "fp32", CPU, limit=limit).train
        assert (train.batch, train.accumulate) == (batch, 12 // batch)
        assert f"train.batch_size = {batch}: about" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train.batch_size = 'auto': one clip needs about"):
        resolve_batch_size(recipe(*AUTO), 10, "fp32", CPU, limit=memory.for_batch(1) - 1)
    number = recipe("train.batch_size=3")
    assert resolve_batch_size(number, 10, "fp32", CPU, limit=1) is number
    tried: list[int] = []
    assert first_fitting([8, 4, 2], lambda size: bool(tried.append(size)) or size <= 4) == 4
    assert tried == [8, 4]
    assert first_fitting([8], lambda size: False) == 0


def test_a_run_can_be_repeated_and_resumed_with_its_resolved_batch_size(manifest: Manifest, tmp_path: Path) -> None:
    run = create_run("auto", root=tmp_path)
    found = Trainer(recipe(*AUTO), manifest)
    found.fit(run)
    written = run.recipe().train
    assert (written.batch_size, written.accumulate) == (12, 1) and written.update_clips == 12
    assert run.recipe().train.batch == 12
    Trainer(run.recipe(), manifest).resume(run)
    again = Trainer(run.recipe(), manifest)
    again.fit(create_run("again", root=tmp_path))
    for ours, theirs in zip(found.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "many"])
def test_invalid_batch_sizes_are_rejected(value: str) -> None:
    with pytest.raises(UsageError, match=r"train.batch_size = .*: must be greater than or equal to 1, or 'auto'"):
        recipe(f"train.batch_size={value}")


def test_auto_has_no_number_before_training() -> None:
    with pytest.raises(UsageError, match="only `ssv2rt train` finds a number"):
        _ = recipe(*AUTO).train.batch


def test_batch_fits_raises_errors_that_are_not_out_of_memory() -> None:
    assert batch_fits(recipe(), 10, "fp32", CPU, 2)
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        batch_fits(recipe(), 0, "fp32", CPU, 2)
    assert usable_memory(CPU.device) > 1e8


@pytest.mark.gpu
def test_on_a_gpu_the_estimate_is_verified_by_real_steps(manifest: Manifest, tmp_path: Path) -> None:
    gpu = Group(0, 1, torch.device("cuda", 0))
    wide = recipe("clip.size=224", "clip.frames=16", "model.width=64", "train.batch_size=auto", "train.update_clips=64")
    memory = estimate_step_memory(wide, 10, "bf16")
    # Leaves 8 GiB. With more, tensors of a batch that does not fit would have over 2^31 elements, which is another matter.
    ballast = torch.empty(max(0, torch.cuda.mem_get_info()[0] - 2**33), dtype=torch.uint8, device="cuda")
    too_large = int(usable_memory(gpu.device) / memory.per_clip) * 2
    assert batch_fits(wide, 10, "bf16", gpu, 2)
    before = torch.cuda.memory_allocated()  # cuBLAS keeps the workspace of its first matrix product
    assert batch_fits(wide, 10, "bf16", gpu, 2) and not batch_fits(wide, 10, "bf16", gpu, too_large)
    assert torch.cuda.memory_allocated() == before
    train = resolve_batch_size(wide, 10, "bf16", gpu).train
    assert train.batch * train.accumulate == 64
    del ballast
    run = create_run("auto", root=tmp_path)
    Trainer(recipe(*AUTO, "train.precision=auto"), manifest).fit(run)
    assert run.recipe().train.batch * run.recipe().train.accumulate == 12
