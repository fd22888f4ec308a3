"""Which part of a frame makes a clip: pure geometry, in whole pixels.

A window's left and top are even: video stores one colour sample for two pixels, so that any decoder cuts an even
window without interpolating colour, and all of them cut the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Pixels `left <= x < left + width`, `top <= y < top + height` of a frame."""

    left: int
    top: int
    width: int
    height: int

    def scaled(self, x: float, y: float) -> Window:
        """The same window of a frame whose width and height are `x` and `y` times as large."""
        left, top = _even(self.left * x), _even(self.top * y)
        return Window(left, top, max(1, round(self.width * x)), max(1, round(self.height * y)))


def centre(*, width: int, height: int, share: float) -> Window:
    """The centred square whose side is `share` of the shorter side of the frame, in pixels."""
    side = max(1, round(min(width, height) * share))
    return Window(_even((width - side) / 2), _even((height - side) / 2), side, side)


def random_resized(
    *, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Window:
    """A window of random area and aspect ratio (the crop of Inception training, Szegedy et al. 2015).

    Ten draws of an area uniform in `scale` (share of the frame) and an aspect ratio uniform in the logarithm of
    `ratio` (width over height); the first that fits is placed at random. If none does, the largest centred window
    with an aspect ratio in range.
    """
    area = width * height * rng.uniform(scale[0], scale[1], 10)
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), 10))
    place = rng.random(2)
    wide = np.rint(np.sqrt(area * aspect)).astype(int)
    high = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = np.flatnonzero((wide <= width) & (high <= height) & (wide > 0) & (high > 0))
    if fits.size:
        w, h = int(wide[fits[0]]), int(high[fits[0]])
        return Window(_even(place[0] * (width - w + 1)), _even(place[1] * (height - h + 1)), w, h)
    aspect_of_frame = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect_of_frame)))
    h = min(height, max(1, round(width / aspect_of_frame)))
    return Window(_even((width - w) / 2), _even((height - h) / 2), w, h)


def _even(value: float) -> int:
    return int(value) // 2 * 2
