"""Frame indices and windows: properties of pure functions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.pipelines import windows
from ssv2rt.pipelines.sampling import segments

frames = st.integers(1, 100_000)
lengths = st.integers(1, 128)
seeds = st.none() | st.integers(0, 2**32)


@given(frames, lengths, seeds)
def test_segments_are_in_range_and_in_order(frames: int, length: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    index = segments(frames=frames, length=length, rng=rng)
    assert index.dtype == np.int32 and index.shape == (length,)
    assert (np.diff(index) >= 0).all() and index[0] >= 0 and index[-1] < frames


@given(frames, lengths, seeds)
def test_each_index_lies_in_its_own_part(frames: int, length: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    index = segments(frames=frames, length=length, rng=rng)
    part = np.arange(length) * frames / length
    assert (index >= np.floor(part)).all() and (index <= np.floor(part + frames / length)).all()


@given(st.integers(1, 50), st.integers(1, 128))
def test_a_short_video_shows_every_frame(frames: int, length: int) -> None:
    index = segments(frames=frames, length=length)
    if length >= frames:
        assert set(index) == set(range(frames))


def test_centres_are_those_of_the_drawing() -> None:
    assert segments(frames=12, length=3).tolist() == [2, 6, 10]
    assert segments(frames=3, length=6).tolist() == [0, 0, 1, 1, 2, 2]


def test_random_places_reach_every_frame() -> None:
    rng = np.random.default_rng(0)
    seen = {int(i) for _ in range(300) for i in segments(frames=20, length=4, rng=rng)}
    assert seen == set(range(20))


@pytest.mark.parametrize(("frames", "length"), [(0, 8), (8, 0), (-1, 8)])
def test_nothing_cannot_be_sampled(frames: int, length: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        segments(frames=frames, length=length)


sizes = st.integers(1, 8192)


@given(sizes, sizes, st.floats(0.01, 1.0))
def test_a_centred_window_is_inside_and_centred(width: int, height: int, share: float) -> None:
    window = windows.centre(width=width, height=height, share=share)
    assert_inside(window, width, height)
    assert window.width == window.height
    assert abs(window.left + window.width / 2 - width / 2) <= 2
    assert abs(window.top + window.height / 2 - height / 2) <= 2


scales = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted).map(tuple)


@given(sizes, sizes, scales, ratios, st.integers(0, 2**32))
def test_a_random_window_is_inside(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    assert_inside(windows.random_resized(width=width, height=height, scale=scale, ratio=ratio, rng=rng), width, height)


def test_random_windows_have_the_area_and_shape_asked_for() -> None:
    rng = np.random.default_rng(0)
    found = [
        windows.random_resized(width=427, height=240, scale=(0.2, 0.5), ratio=(0.75, 1.33), rng=rng) for _ in range(500)
    ]
    areas = np.array([w.width * w.height for w in found]) / (427 * 240)
    shapes = np.array([w.width / w.height for w in found])
    assert 0.19 < areas.min() < 0.22 and 0.48 < areas.max() < 0.52
    assert 0.73 < shapes.min() < 0.8 and 1.27 < shapes.max() < 1.36
    assert min(w.left for w in found) == 0 and max(w.left + w.width for w in found) >= 425


def assert_inside(window: windows.Window, width: int, height: int) -> None:
    assert window.width >= 1 and window.height >= 1
    assert window.left % 2 == 0 and window.top % 2 == 0
    assert window.left >= 0 and window.left + window.width <= width
    assert window.top >= 0 and window.top + window.height <= height
