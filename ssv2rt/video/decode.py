"""Clips by PyAV: a video is decoded once, and libswscale crops, scales and converts only the frames that are wanted.

All views of a video come from one pass. Between key frames, pictures that no wanted frame depends on are not decoded.

Letters: V temporal clips, S spatial crops, T frames.
"""

from __future__ import annotations

from typing import Protocol

import av
import av.error
import numpy as np

from ssv2rt.video.container import CLIP_ERRORS, BadVideo, as_bad
from ssv2rt.video.crop_scale import CropScaler
from ssv2rt.video.crops import CropBox
from ssv2rt.video.seek import Part, all_frames, parts_needed, whole
from ssv2rt.video.storage import VideoSource


class Wanted(Protocol):
    """What to decode of a video. `ClipRequest` has these attributes."""

    @property
    def frames(self) -> np.ndarray:
        """int32 (V, T): frame numbers in display order; each row is sorted."""

    @property
    def crops(self) -> tuple[CropBox, ...]:
        """S crops; each clip has one of them."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height in pixels, as shown, of the frames that the crops refer to."""

    @property
    def video_frames(self) -> int:
        """How many frames the video has."""

    @property
    def flip(self) -> bool:
        """Whether clips are mirrored left to right."""

    @property
    def views(self) -> int:
        """V * S: how many clips."""


def decode_clips(source: VideoSource, request: Wanted, *, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Decodes, crops, scales and flips the clips of a request; color changes come later.

    Args:
        source: the video.
        request: which frames and crops.
        size: height and width of the result in pixels.
        out: where the result goes; new memory by default.

    Returns:
        uint8 RGB (V * S, T, size, size, 3): `out`, if given.

    Raises:
        BadVideo: it cannot be decoded, or ends before the frames asked for.
    """
    if out is None:
        out = np.empty((request.views, request.frames.shape[1], size, size, 3), np.uint8)
    try:
        try:
            return _decode(source, request, out, skip=True)
        except BadVideo as error:
            if str(error) == "truncated":
                raise
        # A packet may be flagged as a key frame that is none. From the beginning every picture has its references.
        return _decode(source, request, out, skip=False)
    except BadVideo:
        raise
    except CLIP_ERRORS as error:
        raise as_bad(error) from None


def clips_of_frames(frames: np.ndarray, request: Wanted, *, size: int) -> np.ndarray:
    """Crops and scales the clips of a request out of frames that are in memory already.

    Args:
        frames: uint8 RGB (n, H, W, 3), in display order; n is `request.video_frames`.
        request: which frames and crops.
        size: height and width of the result in pixels.

    Returns:
        uint8 RGB (V * S, T, size, size, 3).
    """
    temporal_clips, length = request.frames.shape
    clips = np.empty((temporal_clips, len(request.crops), length, size, size, 3), np.uint8)
    crop_scaler = CropScaler(request.crops, request.frame_size, size, mirrored=request.flip)
    for moment, place in np.ndindex(temporal_clips, length):
        picture = np.ascontiguousarray(frames[request.frames[moment, place]])
        crop_scaler.cut(av.VideoFrame.from_ndarray(picture, format="rgb24"), clips[moment, :, place])
    return clips.reshape(-1, *clips.shape[2:])


def _decode(source: VideoSource, request: Wanted, out: np.ndarray, *, skip: bool) -> np.ndarray:
    temporal_clips, length = request.frames.shape
    clips = out.reshape(temporal_clips, len(request.crops), *out.shape[1:])
    crop_scaler = CropScaler(request.crops, request.frame_size, out.shape[2], mirrored=request.flip)
    order = np.argsort(request.frames, axis=None, kind="stable")
    wanted = request.frames.ravel()[order]
    moment, place = np.divmod(order, length)  # where in `clips` each wanted frame goes
    done = 0  # wanted frames that are in place
    last = -1  # number of the last frame seen

    def put(part: Part) -> int:
        """Writes the frames for every wanted number up to the last of the part, and returns how many wanted ones are done."""
        if part.frame.is_corrupt:
            raise BadVideo("corrupt")
        until = int(np.searchsorted(wanted, part.numbers[-1], side="right"))
        start, count = place[done], len(part.numbers)
        if until - done == count == place[until - 1] - start + 1 and moment[done] == moment[until - 1]:
            crop_scaler.cut_parts(part.frame, clips[moment[done], :, start : start + count], part.within)
            return until
        cut = np.empty((clips.shape[1], count, *clips.shape[3:]), np.uint8)
        crop_scaler.cut_parts(part.frame, cut, part.within)
        for at in range(done, until):
            clips[moment[at], :, place[at]] = cut[:, np.searchsorted(part.numbers, wanted[at])]
        return until

    expected = request.video_frames
    parts = (
        parts_needed(source, expected, wanted, crop_scaler.region)
        if skip
        else (whole(number, frame) for number, frame in all_frames(source, expected))
    )
    try:
        for part in parts:
            last = part.numbers[-1]
            if skip and part.numbers[0] > wanted[done]:
                raise BadVideo("corrupt")  # a key frame that was none
            if last >= wanted[done] and (done := put(part)) == len(wanted):
                break
    except av.error.FFmpegError as error:
        raise as_bad(error, begun=last >= 0) from None
    if done < len(wanted):
        raise BadVideo("unreadable" if last < 0 else "corrupt")  # the decoder gave up
    return out
