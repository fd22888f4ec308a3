"""The order of clips: permutations, shards, and starting in the middle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Augment, Clip, Data, Recipe
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import training_request
from ssv2rt.pipelines.samplers import (
    Shard,
    balanced_order,
    earlier_occurrences,
    epoch_order,
    evaluation_batches,
    evaluation_rows,
    in_batches,
    steps_per_epoch,
    train_batches,
    train_rows,
)
from tests.conftest import TINY_SETTINGS

rows = st.integers(1, 3000)
small = st.integers(1, 9)


@pytest.fixture(scope="module")
def split(tiny_set: Path) -> Split:
    return open_manifest(tiny_set).split("train")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("ssv2-resnet3d18", TINY_SETTINGS)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    first, second = (epoch_order(1000, seed=0, epoch=epoch) for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).any()
    assert (first == epoch_order(1000, seed=0, epoch=1)).all()


@given(rows, small, small, small, st.integers(0, 99))
def test_shards_together_are_the_whole_epoch(count: int, batch: int, accumulate: int, shards: int, epoch: int) -> None:
    def of(shard: Shard, batch: int) -> np.ndarray:
        return train_rows(count, batch=batch, accumulate=accumulate, seed=1, epoch=epoch, shard=shard)

    alone = of(Shard(), batch * shards)
    shares = [of(Shard(index, shards), batch) for index in range(shards)]
    assert (np.concatenate(shares, axis=1) == alone).all()  # step by step, in order
    assert len(alone) % accumulate == 0 and len(alone) == steps_per_epoch(
        count, batch=batch, accumulate=accumulate, shards=shards
    )
    seen = np.bincount(alone.ravel(), minlength=count)
    assert len(seen) == count and seen.min() >= 1  # every clip, and padding is spread evenly
    assert seen.max() - seen.min() <= 1
    assert alone.size - count < batch * shards * accumulate


@given(rows, small, small, st.data())
def test_an_epoch_can_be_begun_at_any_step(count: int, batch: int, shards: int, data: st.DataObject) -> None:
    shard = Shard(data.draw(st.integers(0, shards - 1)), shards)
    whole = train_rows(count, batch=batch, seed=3, epoch=4, shard=shard)
    start = data.draw(st.integers(0, len(whole)))
    assert (train_rows(count, batch=batch, seed=3, epoch=4, shard=shard, start=start) == whole[start:]).all()


@given(st.integers(0, 3000), small)
def test_evaluation_sees_each_clip_once(count: int, shards: int) -> None:
    shares = [evaluation_rows(count, Shard(index, shards)) for index in range(shards)]
    assert sorted(np.concatenate(shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_such_shard(index: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"shard {index} of {count}"):
        Shard(index, count)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_resumed_epoch_has_the_same_clips_to_the_last_bit(split: Split, recipe: Recipe, threads: int) -> None:
    def clips(start: int, threads: int) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
        loader = ClipLoader(
            clip=recipe.clip, batch=8, data=Data(threads=threads), device=torch.device("cpu"), augment=True
        )
        batches = loader.batches(train_batches(split, recipe, epoch=5, start=start))
        return [([r.id for r in batch.requests], batch.labels, batch.clips.clone()) for batch in batches]

    whole = clips(0, 2)
    assert len(whole) == 8  # 60 clips
    for (ids, labels, made), (ids_before, labels_before, before) in zip(clips(3, threads), whole[3:], strict=True):
        assert ids == ids_before and torch.equal(labels, labels_before) and torch.equal(made, before)


def test_evaluation_batches_hold_every_clip_in_order(split: Split) -> None:
    requests = [r for batch in evaluation_batches(split, Clip(frames=4), batch=7) for r in batch]
    assert [r.id for r in requests] == split.ids.to_pylist()
    views = Clip(frames=4, views=(2, 3))
    assert {len(batch) for batch in evaluation_batches(split, views, batch=12)} == {2}
    some = next(evaluation_batches(split, Clip(frames=4), batch=7, rows=np.array([5, 2])))
    assert [r.id for r in some] == [split.ids[5].as_py(), split.ids[2].as_py()]


def test_batches_hold_everything_in_order() -> None:
    assert list(in_batches(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 5))
def test_a_balanced_epoch_has_equally_many_clips_of_each_class(classes: list[int], epoch: int) -> None:
    numbers = np.array(classes)
    order = balanced_order(numbers, seed=2, epoch=epoch)
    counts = np.bincount(numbers[order])
    present = counts[np.unique(numbers)]
    assert len(order) == len(numbers) and present.min() >= present.max() - 1 and present.sum() == len(numbers)
    assert (order == balanced_order(numbers, seed=2, epoch=epoch)).all()


def test_clips_of_a_large_class_take_turns_and_those_of_a_small_one_are_drawn_anew(split: Split) -> None:
    numbers = np.array([0] * 30 + [1] * 2)
    seen = [balanced_order(numbers, seed=0, epoch=epoch) for epoch in (1, 2)]
    large = np.concatenate([order[numbers[order] == 0] for order in seen])
    assert len(set(large.tolist())) == 30 and len(large) == 32
    small = seen[0][numbers[seen[0]] == 1]
    assert sorted(earlier_occurrences(small).tolist()) == [i // 2 for i in range(16)]
    settings = {"clip": Clip(frames=4, size=32), "augment": Augment(), "seed": 0, "epoch": 1}
    first, again, third = (training_request(split, 0, repeat=number, **settings) for number in (0, 1, 2))  # type: ignore[arg-type]
    assert first.crops == training_request(split, 0, **settings).crops  # type: ignore[arg-type]
    assert len({first.crops, again.crops, third.crops}) == 3


def test_shards_and_late_starts_have_the_clips_of_a_balanced_epoch(split: Split) -> None:
    recipe = load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, "train.sampler=balanced", "train.batch_size=4"))

    def requests(shard: Shard, start: int = 0) -> list[list[tuple[str, object]]]:
        batches = train_batches(split, recipe, epoch=3, shard=shard, start=start)
        return [[(request.id, request.crops) for request in batch] for batch in batches]

    alone = load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, "train.sampler=balanced", "train.batch_size=8"))
    whole = [[(r.id, r.crops) for r in batch] for batch in train_batches(split, alone, epoch=3)]
    both = [requests(Shard(number, 2)) for number in (0, 1)]
    assert [a + b for a, b in zip(*both, strict=True)] == whole
    assert requests(Shard(1, 2), start=2) == both[1][2:]
