"""Clip requests: everything about a clip that is decided before it is decoded. Letters: V moments, S squares, T frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssv2rt.video.container import VideoLocation
from ssv2rt.video.crops import CropBox

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class ColorChange:
    """A colour change of a whole clip. The default changes nothing."""

    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor, about mid-grey."""
    saturation: float = 1.0
    """Factor; 0 leaves shades of grey."""
    hue: float = 0.0
    """Degrees."""


class Patch(NamedTuple):
    """A rectangle of a finished clip, as shares of its height and width."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What is to be made of a video: V x S clips of T frames each, and what is done to them.

    Training asks for one clip, evaluation for as many as it has views. Clip `v * S + s` has the frames `frames[v]` and the
    window `windows[s]`.
    """

    id: str
    path: VideoLocation
    frames: np.ndarray
    """int32 (V, T), each row never falling: which frames, in display order."""
    windows: tuple[CropBox, ...]
    """S of them."""
    frame_size: tuple[int, int]
    """Width and height in pixels, as shown, of the frames that the windows refer to."""
    video_frames: int
    """How many frames the video has."""
    label: int = NO_LABEL
    """Class number, after mirroring."""
    flip: bool = False
    color: ColorChange = ColorChange()
    erased: Patch | None = None
    by_pyav: bool = False
    """Whether PyAV decodes it in any case."""

    @property
    def views(self) -> int:
        """V * S: how many clips."""
        return len(self.frames) * len(self.windows)
