"""From videos to clip requests: frames, crops and augmentations are chosen here.

All randomness comes from a generator keyed by (seed, epoch, clip id), so the augmentation of a clip does not depend on its
batch, shard or worker, nor on whether the run was resumed. A request says what to do, and these rooms do it:

    frames, crop, flip      video/decode.py (PyAV) or dali_graph.py (DALI), while a clip is decoded
    color, erasing          dali_graph.py, for clips of both decoders
    RandAugment             rand_augment.py, in PyTorch, for clips of both decoders
    mixup, CutMix           training/mixup.py, since they mix the clips of a batch on the device
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from ssv2rt.core.recipes import Augment, Clip
from ssv2rt.dataset.labels import NO_MIRROR
from ssv2rt.dataset.manifest import Split
from ssv2rt.pipelines.rand_augment import draw_operations
from ssv2rt.pipelines.requests import NO_LABEL, ClipRequest, ColorChange, Patch
from ssv2rt.video.crops import random_resized_crop, uniform_crops
from ssv2rt.video.probe import VideoInfo, VideoMeta
from ssv2rt.video.sampling import frame_positions, frames_at_index, frames_at_time
from ssv2rt.video.storage import VideoLocation


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """The evaluation clips of a video that has not been probed yet. It is probed when it is read."""

    id: str
    path: VideoLocation
    clip: Clip
    by_pyav: bool = False
    """See `ClipRequest`."""

    def request(self, info: VideoInfo) -> ClipRequest:
        """The clip request of the video, once it has been probed."""
        return replace(evaluation_request(self.id, self.path, info, clip=self.clip), by_pyav=self.by_pyav)


def clip_rng(seed: int, epoch: int, clip: str) -> np.random.Generator:
    """The random generator of one clip in one epoch. It is counter-based (Philox) and shares no state with other clips."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{clip}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def training_request(
    split: Split, row: int, *, clip: Clip, augment: Augment, seed: int, epoch: int, repeat: int = 0
) -> ClipRequest:
    """A training clip with random frames, crop, flip, color change, erased patch and operations of RandAugment.

    Args:
        split: the clips.
        row: which of them.
        clip: what the network sees.
        augment: what is drawn.
        seed: of the run.
        epoch: its number.
        repeat: how often the epoch had this clip before; the draws differ each time.
    """
    name = split.ids[row].as_py()
    rng = clip_rng(seed, epoch, f"{name}, repeat {repeat}" if repeat else name)
    meta = split.video_meta(row)
    frames = pick_frames(meta, clip, jitter=augment.speed, rng=rng)
    crop = random_resized_crop(
        width=meta.width, height=meta.height, scale=augment.crop_scale, ratio=augment.crop_ratio, rng=rng
    )
    label = int(split.classes[row])
    mirrored = int(split.mirrored[label]) if label >= 0 else NO_MIRROR
    flip = bool(rng.random() < 0.5) and augment.flip == "label-aware" and mirrored != NO_MIRROR
    return ClipRequest(
        id=name,
        path=split.path(row),
        frames=frames[None],
        crops=(crop,),
        frame_size=(meta.width, meta.height),
        video_frames=meta.frames,
        label=mirrored if flip else label,
        flip=flip,
        color=_draw_color(augment, rng),
        erased=_draw_patch(augment, rng),
        operations=draw_operations(augment.rand_layers, augment.rand_magnitude, rng),
    )


def evaluation_request(
    name: str, path: VideoLocation, meta: VideoMeta, *, clip: Clip, label: int = NO_LABEL
) -> ClipRequest:
    """The views that evaluation and scoring use: evenly spaced, centered if there is one, without augmentation.

    Args:
        name: what the result is keyed by.
        path: the video.
        meta: its frames, size and times.
        clip: what the network sees.
        label: class number, if known.
    """
    temporal_clips, spatial_crops = clip.views
    frames = [pick_frames(meta, clip, view=view) for view in range(temporal_clips)]
    crops = uniform_crops(width=meta.width, height=meta.height, share=clip.center_crop, count=spatial_crops)
    return ClipRequest(name, path, np.stack(frames), crops, (meta.width, meta.height), meta.frames, label)


def evaluation_request_of(split: Split, row: int, *, clip: Clip) -> ClipRequest:
    """The evaluation request of a clip of a split."""
    label = int(split.classes[row])
    return evaluation_request(split.ids[row].as_py(), split.path(row), split.video_meta(row), clip=clip, label=label)


def pick_frames(
    meta: VideoMeta,
    clip: Clip,
    *,
    view: int = 0,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The frames of one clip: int32 (T,), never falling. See `sampling.frame_positions`.

    Args:
        meta: frames and times of the video.
        clip: what the network sees.
        view: which of the temporal clips of `clip.views`, if there is no `rng`.
        jitter: strength of speed jitter.
        rng: draws the frames of a training clip.
    """
    by_time = clip.timing == "time" and meta.duration > 0
    positions = frame_positions(
        clip.sampling,
        extent=meta.duration if by_time else float(meta.frames),
        length=clip.frames,
        stride=clip.stride,
        rate=clip.rate if by_time else 1.0,
        jitter=jitter,
        view=view,
        views=clip.views[0],
        rng=rng,
    )
    if by_time and meta.times is not None:
        return frames_at_time(positions, meta.times)
    return frames_at_index(positions * (meta.frames / meta.duration) if by_time else positions, meta.frames)


def _draw_color(augment: Augment, rng: np.random.Generator) -> ColorChange:
    brightness, contrast, saturation, hue = rng.uniform(-augment.color, augment.color, 4).tolist()
    if rng.random() < augment.grayscale:
        saturation, hue = -1.0, 0.0
    return ColorChange(1 + brightness, 1 + contrast, 1 + saturation, 45 * hue)


def _draw_patch(augment: Augment, rng: np.random.Generator) -> Patch | None:
    """A rectangle of random area and of an aspect ratio from 0.3 to 1/0.3, clipped to the frame."""
    wanted, area, aspect, top, left = rng.random(5)
    if wanted >= augment.erase:
        return None
    low, high = augment.erase_area
    area = low + (high - low) * area
    aspect = 0.3 ** (2 * aspect - 1)
    height, width = min(1.0, float(np.sqrt(area * aspect))), min(1.0, float(np.sqrt(area / aspect)))
    return Patch(float(top) * (1 - height), float(left) * (1 - width), height, width)
