"""From videos to clip requests: every choice of frames, windows and changes is made here.

All randomness comes from a generator keyed by (seed, epoch, clip id). So what happens to a clip does not depend on its
batch, shard, worker, or on whether the run was interrupted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from ssv2rt.core.recipes import Augment, Clip
from ssv2rt.dataset.labels import NEVER
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.requests import NO_LABEL, ClipRequest, ColorChange, Patch
from ssv2rt.video import crops as windows
from ssv2rt.video.container import VideoLocation, VideoSource
from ssv2rt.video.probe import VideoMeta, probe
from ssv2rt.video.sampling import frame_positions, frames_at_index, frames_at_time


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """The plain clips of a video of which nothing is known but where it is. It is probed when it is read."""

    id: str
    path: VideoLocation
    clip: Clip
    by_pyav: bool = False
    """See `ClipRequest`."""

    def probed(self, source: VideoSource) -> ClipRequest:
        """The request, by a look at the file or at its content. Raises BadVideo or OSError."""
        return replace(evaluation_request(self.id, self.path, probe(source), clip=self.clip), by_pyav=self.by_pyav)


def clip_rng(seed: int, epoch: int, clip: str) -> np.random.Generator:
    """The generator of one clip in one epoch. Counter-based (Philox): no state is shared with any other clip."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{clip}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def training_request(split: Split, row: int, *, clip: Clip, augment: Augment, seed: int, epoch: int) -> ClipRequest:
    """A training clip with its random frames, window, flip, colour and erased patch."""
    name = split.ids[row].as_py()
    rng = clip_rng(seed, epoch, name)
    meta = split.video_meta(row)
    frames = pick_frames(meta, clip, jitter=augment.speed, rng=rng)
    window = windows.random_resized(
        width=meta.width, height=meta.height, scale=augment.crop_scale, ratio=augment.crop_ratio, rng=rng
    )
    label = int(split.classes[row])
    mirrored = int(split.mirrored[label]) if label >= 0 else NEVER
    flip = bool(rng.random() < 0.5) and augment.flip == "label-aware" and mirrored != NEVER
    return ClipRequest(
        id=name,
        path=split.path(row),
        frames=frames[None],
        windows=(window,),
        frame_size=(meta.width, meta.height),
        video_frames=meta.frames,
        label=mirrored if flip else label,
        flip=flip,
        color=_draw_color(augment, rng),
        erased=_draw_patch(augment, rng),
    )


def evaluation_request(
    name: str, path: VideoLocation, meta: VideoMeta, *, clip: Clip, label: int = NO_LABEL
) -> ClipRequest:
    """What evaluation and scoring look at: evenly placed views, centred if there is one, no change.

    Args:
        name: what the result is keyed by.
        path: the video.
        meta: what is known of it.
        clip: what the network sees.
        label: class number, if known.
    """
    temporal_clips, spatial_crops = clip.views
    frames = [pick_frames(meta, clip, view=(v + 0.5) / temporal_clips) for v in range(temporal_clips)]
    crops = windows.crops(width=meta.width, height=meta.height, share=clip.center_crop, count=spatial_crops)
    return ClipRequest(name, path, np.stack(frames), crops, (meta.width, meta.height), meta.frames, label)


def evaluation_request_of(split: Split, row: int, *, clip: Clip) -> ClipRequest:
    """The plain request of a clip of a split."""
    label = int(split.classes[row])
    return evaluation_request(split.ids[row].as_py(), split.path(row), split.video_meta(row), clip=clip, label=label)


def pick_frames(
    meta: VideoMeta,
    clip: Clip,
    *,
    view: float = 0.5,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The frames of one clip: int32 (T,), never falling. See `sampling.frame_positions`."""
    by_time = clip.timing == "time" and meta.duration > 0
    place = frame_positions(
        clip.sampling,
        extent=meta.duration if by_time else float(meta.frames),
        length=clip.frames,
        step=clip.stride / clip.rate if by_time else clip.stride,
        jitter=jitter,
        view=view,
        rng=rng,
    )
    if by_time and meta.times is not None:
        return frames_at_time(place, meta.times)
    return frames_at_index(place * (meta.frames / meta.duration) if by_time else place, meta.frames)


def _draw_color(augment: Augment, rng: np.random.Generator) -> ColorChange:
    brightness, contrast, saturation, hue = rng.uniform(-augment.color, augment.color, 4).tolist()
    if rng.random() < augment.grayscale:
        saturation, hue = -1.0, 0.0
    return ColorChange(1 + brightness, 1 + contrast, 1 + saturation, 45 * hue)


def _draw_patch(augment: Augment, rng: np.random.Generator) -> Patch | None:
    """A rectangle of random area and of an aspect ratio from 0.3 to 1/0.3, cut down where it does not fit."""
    wanted, area, aspect, top, left = rng.random(5)
    if wanted >= augment.erase:
        return None
    low, high = augment.erase_area
    area = low + (high - low) * area
    aspect = 0.3 ** (2 * aspect - 1)
    height, width = min(1.0, float(np.sqrt(area * aspect))), min(1.0, float(np.sqrt(area / aspect)))
    return Patch(float(top) * (1 - height), float(left) * (1 - width), height, width)
