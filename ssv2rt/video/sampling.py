"""Which frames of a video make a clip: pure index maths.

A video is a stretch of length L, in frames or in seconds; a clip is T places in it, and each place shows one frame.
Letters: n frames of the video, T frames of the clip.

    video       |. . . .|. . . .|. . . .|      n = 12, T = 3
    segments     ^           ^         ^       a place of its own in each of T equal parts (TSN, Wang et al. 2016)
    uniform        ^       ^       ^           the same place in each part
    dense            ^ ^ ^                     neighbours, `step` apart

In training places are drawn; without a generator they are centred. Of V test views, the v-th takes the place at
(v + 1/2) / V of what could have been drawn, so that one view is the centre.
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
    """Places of a clip's frames in a video.

    Args:
        mode: see the module.
        extent: L, above 0: frames or seconds of the video.
        length: T, at least 1.
        step: distance of two frames in dense sampling, in the unit of `extent`. Where the video is too short for it, the
            clip is spread over the whole video.
        jitter: 0 to 1. In training, dense steps are stretched by a factor drawn from 1 - jitter to 1 + jitter; the other
            modes look at a stretch of the video, drawn from 1 - jitter to all of it.
        view: 0 to 1: what is taken instead of the draws when there is no `rng`.
        rng: the generator that draws.

    Returns:
        float64 (T,), never falling, in [0, extent).

    Raises:
        ValueError: `extent` or `step` is not above 0, or `length` is below 1.
    """
    if not (extent > 0 and step > 0 and length >= 1):
        raise ValueError(f"extent = {extent}, step = {step}, length = {length}: all must be above 0")
    speed = rng.uniform(-1.0, 1.0) if rng is not None and jitter else 0.0
    if mode == "dense":
        step = min(step * (1 + jitter * speed), extent / length)
        start = (extent - step * length) * (view if rng is None else rng.random())
        place = start + step * (np.arange(length) + 0.5)
    else:
        share = 1 - jitter * abs(speed)
        start = extent * (1 - share) * (rng.random() if rng is not None and share < 1 else 0.0)
        within: float | np.ndarray = view
        if rng is not None:
            within = rng.random(length) if mode == "segments" else rng.random()
        place = start + (np.arange(length) + within) * (extent * share / length)
    return np.clip(place, 0, np.nextafter(extent, 0))  # rounding may touch the end


def frames_at_index(place: np.ndarray, frames: int) -> np.ndarray:
    """The frames at places given in frames: int32 (T,) in 0..frames-1."""
    return np.minimum(place.astype(np.int32), frames - 1)


def frames_at_time(place: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The frames that are shown at places given in seconds: int32 (T,) in 0..n-1.

    Args:
        place: seconds from the first frame.
        times: (n,) seconds, rising: when each frame appears, the first at 0.
    """
    return np.maximum(np.searchsorted(times, place, side="right") - 1, 0).astype(np.int32)
