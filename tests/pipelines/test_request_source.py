"""Clip requests: every draw follows from (seed, epoch, clip) and nothing else."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipes import Augment, Clip
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.labels import NO_MIRROR, mirrored_labels
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.request_source import evaluation_request_of, pick_frames, training_request
from ssv2rt.pipelines.requests import ClipRequest, ColorChange
from ssv2rt.video.probe import VideoMeta


@pytest.fixture(scope="module")
def split(tiny_set: Path) -> Split:
    return open_manifest(tiny_set).split("train")


def draw(split: Split, row: int, **changes: object) -> ClipRequest:
    settings: dict[str, object] = {"clip": Clip(frames=4), "augment": Augment(), "seed": 1, "epoch": 2}
    return training_request(split, row, **(settings | changes))  # type: ignore[arg-type]


def same(a: ClipRequest, b: ClipRequest) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


def test_a_request_does_not_depend_on_the_ones_before(split: Split) -> None:
    forwards = [draw(split, row) for row in range(len(split))]
    backwards = [draw(split, row) for row in reversed(range(len(split)))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_seed_epoch_and_clip_each_change_it(split: Split) -> None:
    base = draw(split, 0)
    assert base.color != draw(split, 0, epoch=3).color
    assert base.color != draw(split, 0, seed=2).color
    assert base.color != draw(split, 1).color


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
        assert not request.flip and request.color == ColorChange()
        (window,) = request.crops
        assert (window.width, window.height) == (64, 48)


def test_plain_requests_are_the_centre(split: Split) -> None:
    for row in (0, 5):
        request = evaluation_request_of(split, row, clip=Clip(frames=4, center_crop=0.5))
        assert request.id == split.ids[row].as_py() and request.label == split.classes[row]
        assert [tuple(window) for window in request.crops] == [(20, 12, 24, 24)]


def test_uneven_times_are_sampled_by_time_where_the_recipe_says_so() -> None:
    """Ten frames in the first second, one in the second."""
    video_meta = VideoMeta(11, 64, 48, duration=2.0, times=np.array([*np.arange(10) / 10, 1.0], np.float32))
    clip = Clip(frames=4, sampling="segments")
    assert pick_frames(video_meta, clip).tolist() == [1, 4, 6, 9]
    assert pick_frames(video_meta, clip.model_copy(update={"timing": "time"})).tolist() == [2, 7, 10, 10]
    even = VideoMeta(20, 64, 48, duration=2.0)
    assert pick_frames(even, clip.model_copy(update={"timing": "time"})).tolist() == [2, 7, 12, 17]
    dense = Clip(frames=4, sampling="dense", stride=1, timing="time", rate=5)
    assert np.diff(pick_frames(even, dense)).tolist() == [2, 2, 2]  # 10 frames a second, sampled at 5
    unknown = VideoMeta(20, 64, 48)
    assert pick_frames(unknown, clip.model_copy(update={"timing": "time"})).tolist() == [2, 7, 12, 17]


def test_views_are_every_pair_of_a_moment_and_a_square(split: Split) -> None:
    request = evaluation_request_of(split, 0, clip=Clip(frames=4, views=(2, 3), center_crop=1.0))
    assert request.views == 6 and request.frames.shape == (2, 4)
    assert (request.frames[0] <= request.frames[1]).all() and (request.frames[0] < request.frames[1]).any()
    assert [window.left for window in request.crops] == [0, 8, 16]


def test_grey_and_erased_clips_are_as_many_as_asked_for(split: Split) -> None:
    augment = Augment(color=0.0, grayscale=0.25, erase=0.5, erase_area=(0.1, 0.2))
    requests = [draw(split, row, epoch=epoch, augment=augment) for epoch in range(20) for row in range(len(split))]
    gray = [r for r in requests if r.color != ColorChange()]
    assert {r.color for r in gray} == {ColorChange(saturation=0.0)} and 0.2 < len(gray) / len(requests) < 0.3
    patches = [r.erased for r in requests if r.erased]
    assert 0.45 < len(patches) / len(requests) < 0.55
    for patch in patches:
        assert 0 <= patch.top <= patch.top + patch.height <= 1 + 1e-9
        assert 0 <= patch.left <= patch.left + patch.width <= 1 + 1e-9
        assert 0.1 - 1e-9 <= patch.height * patch.width <= 0.2 + 1e-9


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["Moving a left of b", "Moving a right of b", "Left", "Up", "Turn right"]), unique=True)
)
def test_flips_are_right_for_any_list_of_labels(labels: list[str]) -> None:
    mirrored = mirrored_labels(labels)
    for number, name in enumerate(labels):
        sided = any(word in name.lower().split() for word in ("left", "right"))
        if not sided:
            assert mirrored[number] == number
        elif mirrored[number] != NO_MIRROR:
            assert mirrored[mirrored[number]] == number and mirrored[number] != number
