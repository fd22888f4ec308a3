"""The batch size that training finds by itself: it fits, it makes whole updates, and it is written down."""

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
    MOST_ON_CPU,
    candidates,
    count_need,
    free_memory,
    largest,
    steps_fit,
    with_batch_size,
)
from ssv2rt.training.distributed import Group
from ssv2rt.training.model_cost import bytes_kept
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS

CPU = Group(0, 1, torch.device("cpu"))
AUTO = ("train.batch_size=auto", "train.update_clips=12")


@pytest.fixture
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *overrides))


def test_sizes_make_whole_updates() -> None:
    assert candidates(64, torch.device("cuda")) == [64, 32, 16, 8, 4, 2, 1]
    assert candidates(24, CPU.device) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert candidates(128, CPU.device)[0] == MOST_ON_CPU


@pytest.mark.parametrize(
    "settings", [(), ("model.checkpointing=true",), ("model.name=c3d", "model.temporal_strides=[1,1,1,1]")]
)
def test_what_a_step_keeps_is_counted_without_making_it(settings: tuple[str, ...]) -> None:
    made = recipe(*settings)
    model = build_model(made.model, 10).channels_last().train()
    clips = torch.zeros(4, 4, 32, 32, 3, dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    if "model.checkpointing=true" in settings:
        from ssv2rt.models.residual import set_checkpointing

        set_checkpointing(model, True)
    real = [bytes_kept(model, clips[:count], labels[:count].clone()) for count in (3, 4)]
    need = count_need(made, 10, "fp32")
    assert need.clip == real[1] - real[0]
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert need.fixed >= 3 * weights and need.of(3) - need.fixed == 3 * need.clip


def test_half_precision_needs_less_and_an_average_more() -> None:
    plain = count_need(recipe(), 10, "fp32")
    assert count_need(recipe(), 10, "bf16").clip < 0.7 * plain.clip
    assert count_need(recipe("train.ema=0.9"), 10, "fp32").fixed > plain.fixed


def test_the_largest_that_fits_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    need = count_need(recipe(*AUTO), 10, "fp32")
    for limit, batch in ((need.of(12), 12), (need.of(12) - 1, 6), (need.of(4) + 1, 4), (need.of(1), 1)):
        train = with_batch_size(recipe(*AUTO), 10, "fp32", CPU, limit=limit).train
        assert (train.batch, train.accumulate) == (batch, 12 // batch)
        assert f"train.batch_size = {batch}: about" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train.batch_size = 'auto': one clip needs about"):
        with_batch_size(recipe(*AUTO), 10, "fp32", CPU, limit=need.of(1) - 1)
    number = recipe("train.batch_size=3")
    assert with_batch_size(number, 10, "fp32", CPU, limit=1) is number
    tried: list[int] = []
    assert largest([8, 4, 2], lambda size: bool(tried.append(size)) or size <= 4) == 4 and tried == [8, 4]
    assert largest([8], lambda size: False) == 0


def test_a_run_repeats_and_resumes_with_what_was_found(manifest: Manifest, tmp_path: Path) -> None:
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
def test_what_is_neither_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"train.batch_size = .*: must be greater than or equal to 1, or 'auto'"):
        recipe(f"train.batch_size={value}")


def test_only_training_finds_a_number() -> None:
    with pytest.raises(UsageError, match="only `ssv2rt train` finds a number"):
        _ = recipe(*AUTO).train.batch


def test_steps_are_tried_and_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert steps_fit(recipe(), 10, "fp32", CPU, 2)
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        steps_fit(recipe(), 0, "fp32", CPU, 2)
    assert free_memory(CPU.device) > 1e8


@pytest.mark.gpu
def test_on_a_gpu_what_is_found_is_tried(manifest: Manifest, tmp_path: Path) -> None:
    gpu = Group(0, 1, torch.device("cuda", 0))
    wide = recipe("clip.size=224", "clip.frames=16", "model.width=64", "train.batch_size=auto", "train.update_clips=64")
    need = count_need(wide, 10, "bf16")
    much = int(free_memory(gpu.device) / need.clip) * 2
    before = torch.cuda.memory_allocated()
    assert steps_fit(wide, 10, "bf16", gpu, 1) and not steps_fit(wide, 10, "bf16", gpu, much)
    assert torch.cuda.memory_allocated() == before
    train = with_batch_size(wide, 10, "bf16", gpu).train
    assert train.batch * train.accumulate == 64
    run = create_run("auto", root=tmp_path)
    Trainer(recipe(*AUTO, "train.precision=auto"), manifest).fit(run)
    assert run.recipe().train.batch * run.recipe().train.accumulate == 12
