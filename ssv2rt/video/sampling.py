"""Which frames of a video make a clip: pure index math.

A video is an interval of length L, in frames or in seconds. A clip is T positions in it, and each position shows one frame.
Letters: n frames of the video, T frames of the clip.

    video       |. . . .|. . . .|. . . .|      n = 12, T = 3
    segments     ^           ^         ^       a random position in each of T equal parts (TSN, Wang et al. 2016)
    uniform        ^       ^       ^           the same position in each part
    dense            ^ ^ ^                     neighbors, `step` apart

In training positions are random. Without a generator they are centered: of V test views, view v takes the position at
(v + 1/2) / V of the range that training draws from.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Sampling = Literal["segments", "uniform", "dense"]


def frame_positions(
    mode: Sampling,
    *,
    extent: float,
    length: int,
    step: float = 1.0,
    jitter: float = 0.0,
    view: float = 0.5,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Positions of a clip's frames in a video.

    Args:
        mode: see the module.
        extent: L, above 0: frames or seconds of the video.
        length: T, at least 1.
        step: distance of two frames in dense sampling, in the unit of `extent`. Where the video is too short for it, the
            clip is spread over the whole video.
        jitter: 0 to 1. In training, dense steps are stretched by a factor drawn from 1 - jitter to 1 + jitter; the other
            modes look at a stretch of the video, drawn from 1 - jitter to all of it.
        view: 0 to 1: used in the place of random numbers when there is no `rng`.
        rng: the random generator.

    Returns:
        float64 (T,), sorted, in [0, extent).

    Raises:
        ValueError: `extent` or `step` is not above 0, or `length` is below 1.
    """
    if not (extent > 0 and step > 0 and length >= 1):
        raise ValueError(f"extent = {extent}, step = {step}, length = {length}: all must be above 0")
    speed = rng.uniform(-1.0, 1.0) if rng is not None and jitter else 0.0
    if mode == "dense":
        step = min(step * (1 + jitter * speed), extent / length)
        start = (extent - step * length) * (view if rng is None else rng.random())
        positions = start + step * (np.arange(length) + 0.5)
    else:
        share = 1 - jitter * abs(speed)
        start = extent * (1 - share) * (rng.random() if rng is not None and share < 1 else 0.0)
        within: float | np.ndarray = view
        if rng is not None:
            within = rng.random(length) if mode == "segments" else rng.random()
        positions = start + (np.arange(length) + within) * (extent * share / length)
    return np.clip(positions, 0, np.nextafter(extent, 0))  # rounding may touch the end


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
