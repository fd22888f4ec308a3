"""Clip requests: everything about a clip that is decided before it is decoded.

All randomness is drawn here, from a generator keyed by (seed, epoch, clip id). So what happens to a clip does not
depend on its batch, shard, worker, or on whether the run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from ssv2rt.dataset.labels import NEVER
from ssv2rt.dataset.manifest import Split
from ssv2rt.dataset.probe import probe
from ssv2rt.pipelines import windows
from ssv2rt.pipelines.sampling import segments
from ssv2rt.pipelines.windows import Window
from ssv2rt.recipes import Augment, Clip

NO_LABEL = -1
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour change of a whole clip. The default changes nothing."""

    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor, about mid-grey."""
    saturation: float = 1.0
    """Factor."""
    hue: float = 0.0
    """Degrees."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One clip to be made: which video, which frames, which window, and what is done to it."""

    id: str
    path: Path
    frames: np.ndarray
    """int32 (T,), never falling: which frames, in display order."""
    window: Window
    coded_size: tuple[int, int]
    """Width and height of the frames that `window` refers to, in pixels."""
    video_frames: int
    """How many frames the video has."""
    label: int = NO_LABEL
    """Class number, after mirroring."""
    flip: bool = False
    colour: Colour = Colour()


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """The plain clip of a video of which nothing is known but where it is. It is probed when it is read."""

    id: str
    path: Path
    clip: Clip

    def probed(self) -> ClipRequest:
        """Raises BadVideo or OSError."""
        info = probe(self.path)
        return plain_request(self.id, self.path, frames=info.frames, size=(info.width, info.height), clip=self.clip)


def clip_rng(seed: int, epoch: int, clip: str) -> np.random.Generator:
    """The generator of one clip in one epoch. Counter-based (Philox): no state is shared with any other clip."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{clip}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (rows,): a permutation of the whole set for an epoch."""
    return clip_rng(seed, epoch, "order of the epoch").permutation(rows)


def train_request(split: Split, row: int, *, clip: Clip, augment: Augment, seed: int, epoch: int) -> ClipRequest:
    """A training clip with its random frames, window, flip and colour."""
    name = split.ids[row].as_py()
    rng = clip_rng(seed, epoch, name)
    size = int(split.widths[row]), int(split.heights[row])
    frames = segments(frames=int(split.frames[row]), length=clip.frames, rng=rng)
    window = windows.random_resized(
        width=size[0], height=size[1], scale=augment.crop_scale, ratio=augment.crop_ratio, rng=rng
    )
    label = int(split.classes[row])
    mirrored = int(split.mirrored[label])
    flip = bool(rng.random() < 0.5) and augment.flip == "label-aware" and mirrored != NEVER
    brightness, contrast, saturation, hue = rng.uniform(-augment.color, augment.color, 4).tolist()
    colour = Colour(1 + brightness, 1 + contrast, 1 + saturation, 45 * hue) if augment.color else Colour()
    return ClipRequest(
        id=name,
        path=split.path(row),
        frames=frames,
        window=window,
        coded_size=size,
        video_frames=int(split.frames[row]),
        label=mirrored if flip else label,
        flip=flip,
        colour=colour,
    )


def plain_request(
    name: str, path: Path, *, frames: int, size: tuple[int, int], clip: Clip, label: int = NO_LABEL
) -> ClipRequest:
    """The clip that evaluation and scoring look at: centre frames of the segments, centred square, no change.

    Args:
        name: what the result is keyed by.
        path: the video.
        frames: its number of frames.
        size: its width and height in pixels.
        clip: what the network sees.
        label: class number, if known.
    """
    index = segments(frames=frames, length=clip.frames)
    window = windows.centre(width=size[0], height=size[1], share=clip.center_crop)
    return ClipRequest(name, path, index, window, size, frames, label)


def plain_requests(split: Split, *, clip: Clip, rows: np.ndarray | None = None) -> Iterator[ClipRequest]:
    """The plain request of every clip of a split, or of the given rows, in order."""
    for row in range(len(split)) if rows is None else rows:
        size = int(split.widths[row]), int(split.heights[row])
        yield plain_request(
            split.ids[int(row)].as_py(),
            split.path(int(row)),
            frames=int(split.frames[row]),
            size=size,
            clip=clip,
            label=int(split.classes[row]),
        )


def in_batches(requests: Iterator[R], size: int) -> Iterator[list[R]]:
    """Lists of `size` requests; the last may be shorter."""
    while batch := list(islice(requests, size)):
        yield batch
