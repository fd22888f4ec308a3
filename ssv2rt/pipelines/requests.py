"""Clip requests: everything about a clip that is decided before it is decoded.

Letters: V temporal clips, S spatial crops, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ssv2rt.video.crops import CropBox
from ssv2rt.video.storage import VideoLocation

NO_LABEL = -1
GRAY = (124, 116, 104)
"""Color of what is erased, or comes from outside of a clip: the mean of ImageNet, which normalization maps to 0."""


@dataclass(frozen=True, slots=True)
class ColorChange:
    """A color change of a whole clip. The default changes nothing."""

    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor, about mid-gray."""
    saturation: float = 1.0
    """Factor; 0 leaves shades of gray."""
    hue: float = 0.0
    """Degrees."""


class Patch(NamedTuple):
    """A rectangle of a finished clip, in fractions of its height and width."""

    top: float
    left: float
    height: float
    width: float


class Operation(NamedTuple):
    """An operation of RandAugment on a finished clip, the same in all frames. See `rand_augment`."""

    name: str
    amount: float


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """Which clips to make of a video: V * S clips of T frames each, and their augmentation.

    Training asks for one clip, evaluation for one clip per view. Clip `v * S + s` has the frames `frames[v]` and the crop
    `crops[s]`.
    """

    id: str
    path: VideoLocation
    frames: np.ndarray
    """int32 (V, T): frame numbers in display order; each row is sorted."""
    crops: tuple[CropBox, ...]
    """S of them."""
    frame_size: tuple[int, int]
    """Width and height in pixels, as shown, of the frames that the crops refer to."""
    video_frames: int
    """How many frames the video has."""
    label: int = NO_LABEL
    """Class number; of a flipped clip, that of the flipped label."""
    flip: bool = False
    color: ColorChange = ColorChange()
    erased: Patch | None = None
    operations: tuple[Operation, ...] = ()
    """In this order, after everything else."""
    by_pyav: bool = False
    """Whether PyAV must decode it."""

    @property
    def views(self) -> int:
        """V * S: how many clips."""
        return len(self.frames) * len(self.crops)

    def of_size(self, size: tuple[int, int]) -> ClipRequest:
        """The same clips of a video whose frames have another size: its crops are the same parts of the picture.

        Repacked videos have smaller frames than their manifest, which keeps the size of the original.
        """
        if size == self.frame_size:
            return self
        x, y = size[0] / self.frame_size[0], size[1] / self.frame_size[1]
        return replace(self, crops=tuple(crop.scaled(x, y) for crop in self.crops), frame_size=size)
