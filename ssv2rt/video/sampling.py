"""Which frames of a video make a clip: pure index math.

A video is an interval of length L, in frames or in seconds. A clip is T positions in it, and each position shows one frame.
Letters: n frames of the video, T frames of the clip, v of V test views.

    video       |. . . .|. . . .|. . . .|      n = 12, T = 3
    segments     ^           ^         ^       a random position in each of T equal parts (TSN, Wang et al. 2016)
    uniform        ^       ^       ^           the same position in each part
    dense            ^ ^ ^                     neighbors, `stride` apart

In training positions are random. Without a generator they are centered: of V test views, view v takes the position at
(v + 1/2) / V of the range that training draws from.

The rules of published networks count frames, and take these at test time (frames from 0, for n = 50 and T = 8):

    tsm         view 0   3  9 15 21 28 34 40 46      middles of the parts; T = 8 and 16 of TSM, also MMAction2's
                view 1   0  6 12 18 25 31 37 43      their first frames ("twice sample")
    ibm         view 0   3  9 15 21 28 34 40 46      the middles; of 2 views
                view 1   4 10 16 22 29 35 41 47      a frame later, at most to the end of the part
    pyslowfast  view 0   3  9 15 21 27 34 40 46      the middles of parts of the n - 1 steps, whose ends are rounded to frames

Of a video with n <= T, tsm and pyslowfast repeat frames, and ibm draws T with replacement, from a seed that is the number of
the view. In training, pyslowfast draws any frame between the rounded ends of a part, both included. tsm and ibm draw as
segments and uniform: the sources draw from parts of n // T frames, and so never see the last n mod T.

Sources: `_get_test_indices` in ops/dataset.py of mit-han-lab/temporal-shift-module; `SampleFrames` in
mmaction/datasets/transforms/loading.py of open-mmlab/mmaction2; `_get_val_indices` in utils/video_dataset.py of
IBM/action-recognition-pytorch; `get_seq_frames` in slowfast/datasets/ssv2.py of facebookresearch/SlowFast.
"""

from __future__ import annotations

import numpy as np

from ssv2rt.core.recipes import Sampling

_TRAINED_AS: dict[Sampling, Sampling] = {"tsm": "segments", "ibm": "uniform"}
"""How training draws positions, where a rule of test views has none of its own."""
_COUNT_FRAMES: tuple[Sampling, ...] = ("tsm", "ibm", "pyslowfast")


def frame_positions(
    mode: Sampling,
    *,
    extent: float,
    length: int,
    stride: float = 1.0,
    rate: float = 1.0,
    jitter: float = 0.0,
    view: int = 0,
    views: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Positions of a clip's frames in a video.

    Args:
        mode: see the module.
        extent: L, above 0: frames or seconds of the video.
        length: T, at least 1.
        stride: distance of two frames in dense sampling, in frames. Where the video is too short for it, the clip is spread
            over the whole video.
        rate: frames in a unit of `extent`. The rules that count frames see a video of `extent * rate` frames, rounded, and
            at least one; their positions are the middles of frames.
        jitter: 0 to 1. In training, dense strides are stretched by a factor drawn from 1 - jitter to 1 + jitter; the other
            modes look at a stretch of the video, drawn from 1 - jitter to all of it.
        view: v, from 0: used in the place of random numbers when there is no `rng`.
        views: V. tsm has at most 2.
        rng: the random generator.

    Returns:
        float64 (T,), sorted, in [0, extent).

    Raises:
        ValueError: `extent`, `stride` or `rate` is not above 0, `length` is below 1, or there is no such view.
    """
    if not (extent > 0 and stride > 0 and rate > 0 and length >= 1):
        raise ValueError(f"extent = {extent}, stride = {stride}, rate = {rate}, length = {length}: all must be above 0")
    if not 0 <= view < min(views, 2 if mode == "tsm" else views):
        raise ValueError(f"view = {view} of {views}: there is none of this number")
    if rng is not None:
        mode = _TRAINED_AS.get(mode, mode)
    speed = rng.uniform(-1.0, 1.0) if rng is not None and jitter else 0.0
    share = 1 - jitter * abs(speed)
    if mode == "dense":
        step = min(stride / rate * (1 + jitter * speed), extent / length)
        start = (extent - step * length) * ((view + 0.5) / views if rng is None else rng.random())
        positions = start + step * (np.arange(length) + 0.5)
    elif mode in _COUNT_FRAMES:
        frames = max(1, round(extent * rate))
        index = _drawn_frames(frames, length, share, rng) if rng else _test_frames(mode, frames, length, view, views)
        positions = (index + 0.5) / rate
    else:
        start = extent * (1 - share) * (rng.random() if rng is not None and share < 1 else 0.0)
        within: float | np.ndarray = (view + 0.5) / views
        if rng is not None:
            within = rng.random(length) if mode == "segments" else rng.random()
        positions = start + (np.arange(length) + within) * (extent * share / length)
    return np.clip(positions, 0, np.nextafter(extent, 0))  # rounding may touch the end


def _test_frames(mode: Sampling, frames: int, length: int, view: int, views: int) -> np.ndarray:
    """The frames of a view by a rule that counts frames, computed in the order of the sources, which rounding depends on."""
    number = np.arange(length)
    if mode == "pyslowfast":  # has one view; more are spread over the parts
        ends = _rounded_ends(frames, length)
        return ends[:-1] + np.diff(ends) * (2 * view + 1) // (2 * views)
    part = frames / length
    if mode == "tsm":
        return (part * number + (0.0 if view else part / 2)).astype(np.int64)
    if frames <= length:
        return np.sort(np.random.RandomState(view).choice(frames, length))  # the generator of the source, and its seed
    later = float(view - (views - 1) // 2)
    later = part / 2 - 1e-4 if later >= part / 2 else max(later, -part / 2)
    return (part / 2 + later + part * number).astype(np.int64)


def _drawn_frames(frames: int, length: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A random frame from each part of pyslowfast, both ends included, of a random stretch with a share of the video."""
    shown = max(1, round(frames * share))
    ends = _rounded_ends(shown, length)
    return rng.integers(frames - shown + 1) + rng.integers(ends[:-1], ends[1:], endpoint=True)


def _rounded_ends(frames: int, length: int) -> np.ndarray:
    """The T + 1 ends, in whole frames, of T equal parts from the first frame to the last."""
    return np.rint((frames - 1) / length * np.arange(length + 1)).astype(np.int64)


def frames_at_index(positions: np.ndarray, frames: int) -> np.ndarray:
    """Frame numbers at positions given in frames: int32 (T,) in 0..frames-1."""
    return np.minimum(positions.astype(np.int32), frames - 1)


def frames_at_time(positions: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Numbers of the frames that are shown at positions given in seconds: int32 (T,) in 0..n-1.

    Args:
        positions: seconds from the first frame.
        times: (n,) seconds, rising: when each frame appears, the first at 0.
    """
    return np.maximum(np.searchsorted(times, positions, side="right") - 1, 0).astype(np.int32)
