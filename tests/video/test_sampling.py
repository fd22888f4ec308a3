"""Frame indices and windows: properties of pure functions."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.recipes import Sampling
from ssv2rt.video.crops import CropBox, random_resized_crop, uniform_crops
from ssv2rt.video.sampling import frame_positions, frames_at_index, frames_at_time

frames = st.integers(1, 100_000)
extents = st.floats(0.01, 1e5)
lengths = st.integers(1, 128)
strides = st.floats(0.01, 100)
shares = st.floats(0, 1)
rates = st.floats(0.1, 240)
views = st.integers(1, 2).flatmap(lambda views: st.tuples(st.integers(0, views - 1), st.just(views)))
modes = st.sampled_from(get_args(Sampling))
generators = (st.none() | st.integers(0, 2**32)).map(lambda seed: None if seed is None else np.random.default_rng(seed))


@given(modes, extents, lengths, strides, rates, shares.filter(lambda x: x < 1), views, generators)
def test_places_are_in_the_video_and_in_order(
    mode: Sampling,
    extent: float,
    length: int,
    stride: float,
    rate: float,
    jitter: float,
    view: tuple[int, int],
    rng: np.random.Generator | None,
) -> None:
    place = frame_positions(
        mode,
        extent=extent,
        length=length,
        stride=stride,
        rate=rate,
        jitter=jitter,
        view=view[0],
        views=view[1],
        rng=rng,
    )
    assert place.shape == (length,)
    assert (np.diff(place) >= 0).all() and place[0] >= 0 and place[-1] < extent


@given(modes, frames, lengths, st.integers(0, 2**32))
def test_the_same_generator_gives_the_same_places(mode: Sampling, extent: int, length: int, seed: int) -> None:
    first, second = (
        frame_positions(mode, extent=extent, length=length, jitter=0.3, rng=np.random.default_rng(seed))
        for _ in range(2)
    )
    assert (first == second).all()


@given(frames, lengths, generators)
def test_each_segment_has_its_frame(extent: int, length: int, rng: np.random.Generator | None) -> None:
    index = frames_at_index(frame_positions("segments", extent=extent, length=length, rng=rng), extent)
    part = np.arange(length) * extent / length
    assert index.dtype == np.int32
    assert (index >= np.floor(part)).all() and (index <= np.floor(part + extent / length)).all()


@given(st.sampled_from(["segments", "uniform"]), st.integers(1, 50), st.integers(1, 128))
def test_a_short_video_shows_every_frame(mode: Sampling, extent: int, length: int) -> None:
    index = frames_at_index(frame_positions(mode, extent=extent, length=length), extent)
    if length >= extent:
        assert set(index) == set(range(extent))


@given(frames, lengths, st.integers(1, 8), generators)
def test_dense_frames_are_a_stride_apart_where_there_is_room(
    extent: int, length: int, stride: int, rng: np.random.Generator | None
) -> None:
    index = frames_at_index(frame_positions("dense", extent=extent, length=length, stride=stride, rng=rng), extent)
    if extent >= stride * length:
        assert set(np.diff(index)) <= {stride}
    else:
        assert index[-1] - index[0] >= extent - 1 - extent / length  # all of the video


@given(frames, lengths, generators)
def test_uniform_frames_are_evenly_spaced(extent: int, length: int, rng: np.random.Generator | None) -> None:
    step = np.diff(frame_positions("uniform", extent=extent, length=length, rng=rng))
    assert np.allclose(step, extent / length)


def test_centres_are_those_of_the_drawing() -> None:
    assert frames_at_index(frame_positions("segments", extent=12, length=3), 12).tolist() == [2, 6, 10]
    assert frames_at_index(frame_positions("uniform", extent=3, length=6), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert frames_at_index(frame_positions("dense", extent=12, length=3, stride=2), 12).tolist() == [4, 6, 8]


@pytest.mark.parametrize("mode", ["segments", "uniform", "dense"])
def test_random_places_reach_every_frame(mode: Sampling) -> None:
    rng = np.random.default_rng(0)
    seen = {
        int(i)
        for _ in range(600)
        for i in frames_at_index(frame_positions(mode, extent=20, length=4, rng=rng, jitter=0.5), 20)
    }
    assert seen == set(range(20))


@pytest.mark.parametrize("mode", ["segments", "uniform", "dense"])
def test_views_differ_and_the_only_one_is_the_centre(mode: Sampling) -> None:
    three = [frame_positions(mode, extent=60, length=4, stride=3, view=v, views=3) for v in range(3)]
    assert (three[0] < three[1]).all() and (three[1] < three[2]).all()
    assert (three[1] == frame_positions(mode, extent=60, length=4, stride=3)).all()


def test_jitter_changes_the_speed_within_bounds() -> None:
    rng = np.random.default_rng(0)
    for mode, low, high in (("dense", 1.5, 2.5), ("segments", 0.0, 50.0), ("uniform", 18.75, 25.0)):
        spans = [
            np.diff(frame_positions(mode, extent=100, length=4, stride=2, jitter=0.25, rng=rng)) for _ in range(300)
        ]  # type: ignore[arg-type]
        assert low - 1e-9 <= np.min(spans) and np.max(spans) <= high + 1e-9
        assert np.ptp([span.mean() for span in spans]) > 0.1


@pytest.mark.parametrize(("extent", "length"), [(0, 8), (8, 0), (-1, 8)])
def test_nothing_cannot_be_sampled(extent: int, length: int) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        frame_positions("segments", extent=extent, length=length)


@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=50), st.lists(st.floats(0, 200), min_size=1))
def test_the_frame_at_a_time_is_the_one_on_show(steps: list[float], when: list[float]) -> None:
    times = np.concatenate([[0], np.cumsum(steps)])
    for place, index in zip(when, frames_at_time(np.array(when), times), strict=True):
        assert times[index] <= place and (index == len(times) - 1 or times[index + 1] > place)


sizes = st.integers(1, 8192)


@given(sizes, sizes, st.floats(0.01, 1.0))
def test_a_centred_window_is_inside_and_centred(width: int, height: int, share: float) -> None:
    (crop,) = uniform_crops(width=width, height=height, share=share)
    assert_inside(crop, width, height)
    assert crop.width == crop.height
    assert abs(crop.left + crop.width / 2 - width / 2) <= 2
    assert abs(crop.top + crop.height / 2 - height / 2) <= 2


@given(sizes, sizes, st.floats(0.01, 1.0), st.integers(2, 9))
def test_squares_are_spread_along_the_longer_side(width: int, height: int, share: float, count: int) -> None:
    crops = uniform_crops(width=width, height=height, share=share, count=count)
    assert len(crops) == count
    for crop in crops:
        assert_inside(crop, width, height)
    along = [w.left if width >= height else w.top for w in crops]
    side = crops[0].width
    assert along[0] == 0 and max(width, height) - side - along[-1] <= 1 and along == sorted(along)


scales = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted).map(tuple)


@given(sizes, sizes, scales, ratios, st.integers(0, 2**32))
def test_a_random_window_is_inside(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assert_inside(random_resized_crop(width=width, height=height, scale=scale, ratio=ratio, rng=rng), width, height)


def test_random_windows_have_the_area_and_shape_asked_for() -> None:
    rng = np.random.default_rng(0)
    found = [
        random_resized_crop(width=427, height=240, scale=(0.2, 0.5), ratio=(0.75, 1.33), rng=rng) for _ in range(500)
    ]
    areas = np.array([w.width * w.height for w in found]) / (427 * 240)
    shapes = np.array([w.width / w.height for w in found])
    assert 0.19 < areas.min() < 0.22 and 0.48 < areas.max() < 0.52
    assert 0.73 < shapes.min() < 0.8 and 1.27 < shapes.max() < 1.36
    assert min(w.left for w in found) == 0 and max(w.left + w.width for w in found) >= 425


def assert_inside(crop: CropBox, width: int, height: int) -> None:
    assert crop.width >= 1 and crop.height >= 1
    assert crop.left % 2 == 0 and crop.top % 2 == 0
    assert crop.left >= 0 and crop.left + crop.width <= width
    assert crop.top >= 0 and crop.top + crop.height <= height
