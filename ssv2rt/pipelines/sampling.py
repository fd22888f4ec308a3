"""Which frames of a video make a clip: pure index maths.

Letters: n frames of the video, T frames of the clip.
"""

from __future__ import annotations

import numpy as np


def segments(*, frames: int, length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame of each of `length` equal parts of the video (TSN, Wang et al. 2016).

        video   |. . . .|. . . .|. . . .|      n = 12, T = 3
        centre       ^       ^       ^         2, 6, 10
        random   ^           ^         ^       0, 6, 11 (say)

    A video shorter than the clip repeats frames, in order.

    Args:
        frames: n, at least 1.
        length: T, at least 1.
        rng: draws the place in each part; None takes the centres.

    Returns:
        int32 (T,), never falling, in 0..n-1.

    Raises:
        ValueError: `frames` or `length` is below 1.
    """
    if frames < 1 or length < 1:
        raise ValueError(f"frames = {frames}, length = {length}: both must be at least 1")
    place = np.full(length, 0.5) if rng is None else rng.random(length)
    index = ((np.arange(length) + place) * (frames / length)).astype(np.int32)
    return np.minimum(index, frames - 1)  # rounding may touch n
