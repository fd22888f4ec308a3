"""Which part of a frame makes a clip: pure geometry, in whole pixels.

Left and top of a crop are even. Video stores one color sample for two pixels, so every decoder cuts such a crop without
interpolating color, and all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class CropBox(NamedTuple):
    """Pixels `left <= x < left + width`, `top <= y < top + height` of a frame."""

    left: int
    top: int
    width: int
    height: int

    def scaled(self, x: float, y: float) -> CropBox:
        """The same crop of a frame whose width and height are `x` and `y` times as large."""
        left, top = _even(self.left * x), _even(self.top * y)
        return CropBox(left, top, max(1, round(self.width * x)), max(1, round(self.height * y)))

    def unturned(self, turn: tuple[bool, bool, bool], size: tuple[int, int]) -> CropBox:
        """This crop of the upright frame, in pixels of the frame as coded.

        Args:
            turn: how the coded frame is shown, see `container.orientation`.
            size: width and height of the coded frame.
        """
        transposed, mirrored, upside_down = turn
        width, height = size[::-1] if transposed else size
        left, top = self.left, self.top
        if mirrored:
            left = width - left - self.width
        if upside_down:
            top = height - top - self.height
        if transposed:
            return CropBox(_even(top), _even(left), self.height, self.width)
        return CropBox(_even(left), _even(top), self.width, self.height)


def bounding_box(crops: Sequence[CropBox]) -> CropBox:
    """The smallest crop that contains all of them."""
    left, top = min(w.left for w in crops), min(w.top for w in crops)
    right, bottom = max(w.left + w.width for w in crops), max(w.top + w.height for w in crops)
    return CropBox(left, top, right - left, bottom - top)


def uniform_crops(*, width: int, height: int, share: float, count: int = 1) -> tuple[CropBox, ...]:
    """Square crops, evenly spaced along the longer side of the frame.

    One crop is centered; of three, the outer two touch the edges. So three whole crops (`share` 1) are those of published
    networks but for a few pixels, in which these differ from each other, too. Of a frame of 427x240, scaled to a height of
    256, they begin at

        here          0   98.1   198.4      even pixels of the frame as it is
        TSM, IBM      0   98     196        quarters of the room in whole pixels
        MMAction2     0   99     198        halves
        PySlowFast    0  100     199        rounded up, and the edge

    Of frames that are higher than wide, TSM takes the center three times, and the others top, center and bottom, as here.

    Args:
        width: of the frame in pixels.
        height: of the frame in pixels.
        share: side of a crop as a share of the shorter side of the frame, above 0, at most 1.
        count: S, at least 1.
    """
    side = max(1, round(min(width, height) * share))
    room_x, room_y = width - side, height - side
    result = []
    for number in range(count):
        along = number / (count - 1) if count > 1 else 0.5
        x, y = (along, 0.5) if width >= height else (0.5, along)
        result.append(CropBox(_even(room_x * x), _even(room_y * y), side, side))
    return tuple(result)


def random_resized_crop(
    *, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> CropBox:
    """A crop of random area and aspect ratio, as for training Inception (Szegedy et al. 2015).

    Ten draws of an area uniform in `scale` (share of the frame) and an aspect ratio uniform in the logarithm of
    `ratio` (width over height); the first that fits is placed at random. If none does, the largest centered crop
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
        return CropBox(_even(place[0] * (width - w + 1)), _even(place[1] * (height - h + 1)), w, h)
    aspect_of_frame = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect_of_frame)))
    h = min(height, max(1, round(width / aspect_of_frame)))
    return CropBox(_even((width - w) / 2), _even((height - h) / 2), w, h)


def _even(value: float) -> int:
    return int(value) // 2 * 2
