"""Clip requests: every draw follows from (seed, epoch, clip) and nothing else."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from ssv2rt.dataset.manifest import Split, open_manifest
from ssv2rt.pipelines.source import ClipRequest, Colour, epoch_order, in_batches, plain_requests, train_request
from ssv2rt.recipes import Augment, Clip


@pytest.fixture(scope="module")
def split(tiny_set: Path) -> Split:
    return open_manifest(tiny_set).split("train")


def draw(split: Split, row: int, **changes: object) -> ClipRequest:
    settings: dict[str, object] = {"clip": Clip(frames=4), "augment": Augment(), "seed": 1, "epoch": 2}
    return train_request(split, row, **(settings | changes))  # type: ignore[arg-type]


def same(a: ClipRequest, b: ClipRequest) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


def test_a_request_does_not_depend_on_the_ones_before(split: Split) -> None:
    forwards = [draw(split, row) for row in range(len(split))]
    backwards = [draw(split, row) for row in reversed(range(len(split)))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_seed_epoch_and_clip_each_change_it(split: Split) -> None:
    base = draw(split, 0)
    assert base.colour != draw(split, 0, epoch=3).colour
    assert base.colour != draw(split, 0, seed=2).colour
    assert base.colour != draw(split, 1).colour


def test_half_of_the_clips_are_mirrored_and_their_labels_with_them(split: Split) -> None:
    requests = [(row, draw(split, row, epoch=epoch)) for epoch in range(10) for row in range(len(split))]
    flipped = [(row, r) for row, r in requests if r.flip]
    assert 0.4 < len(flipped) / len(requests) < 0.6
    for row, request in requests:
        name, now = split.labels[split.classes[row]], split.labels[request.label]
        if request.flip and ("left" in name or "right" in name):
            assert now != name and now.replace("left", "?").replace("right", "left").replace("?", "right") == name
        else:
            assert now == name


def test_nothing_changes_where_nothing_is_asked_for(split: Split) -> None:
    quiet = Augment(crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3), flip="never", color=0.0)
    for row in range(20):
        request = draw(split, row, augment=quiet)
        assert not request.flip and request.colour == Colour()
        assert (request.window.width, request.window.height) == (64, 48)


def test_plain_requests_are_the_centre(split: Split) -> None:
    requests = list(plain_requests(split, clip=Clip(frames=4, center_crop=0.5)))
    assert [r.id for r in requests] == split.ids.to_pylist()
    assert {tuple(r.window) for r in requests} == {(20, 12, 24, 24)}
    some = list(plain_requests(split, clip=Clip(frames=4), rows=np.array([5, 2])))
    assert [r.id for r in some] == [split.ids[5].as_py(), split.ids[2].as_py()]


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    first, second = (epoch_order(1000, seed=0, epoch=epoch) for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).any()
    assert (first == epoch_order(1000, seed=0, epoch=1)).all()


def test_batches_hold_everything_in_order() -> None:
    assert list(in_batches(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
