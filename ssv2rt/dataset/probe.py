"""What a video is, found by reading its container, without decoding a picture."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import av.logging

av.logging.set_level(av.logging.PANIC)  # a broken clip is reported once, by us

_EBML = b"\x1a\x45\xdf\xa3"  # how Matroska and WebM begin

VideoSource = Path | bytes
"""A file, or the content of one."""


_OTHER_FILES = frozenset({"concat", "concatf", "dash", "hls", "imf", "sdp", "webm_dash_manifest"})
"""Formats that are lists of other files: a video is what it is named, and opens nothing else."""


class BadVideo(Exception):
    """A video that cannot be used. The message is one of the words of `reason_of` or of this module's checks."""


CLIP_ERRORS = (BadVideo, OSError, ValueError, av.error.FFmpegError, RuntimeError, ArithmeticError, MemoryError)
"""What a broken file makes libraries raise: it costs its own clip."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video stream as its container describes it."""

    codec: str
    """FFmpeg's name: vp9, h264, mpeg4, ..."""
    width: int
    """Pixels of a decoded frame."""
    height: int
    frames: int
    """Counted packets, each of which gives one frame; at least 1."""
    rate: float
    """Frames per second; 0 if unknown."""


def open_video(source: VideoSource) -> av.container.InputContainer:
    """Opens a container for reading.

    Raises:
        BadVideo: it cannot be opened, or has no video stream.
    """
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise BadVideo("unreadable")  # a folder; or a pipe or a device, on which one could wait for ever
        if _is_matroska(source):
            # FFmpeg decodes a picture of each stream to describe it, a tenth of the work of a clip. Matroska's header
            # says enough for these codecs.
            container = _open(source, {"codec_whitelist": "none"})
            if container.streams.video and container.streams.video[0].codec_context.name in ("vp8", "vp9"):
                return container
            container.close()
        container = _open(source, {})
    except CLIP_ERRORS as error:
        raise BadVideo(reason_of(error)) from None
    if set(container.format.name.split(",")) & _OTHER_FILES:
        container.close()
        raise BadVideo("unreadable")
    if not container.streams.video:
        container.close()
        raise BadVideo("no video stream")
    return container


def _open(source: VideoSource, options: dict[str, str]) -> av.container.InputContainer:
    handle = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    return av.open(handle, mode="r", buffer_size=1 << 18, options=options)


def _is_matroska(source: VideoSource) -> bool:
    if isinstance(source, bytes):
        return source[:4] == _EBML
    with source.open("rb") as file:
        return file.read(4) == _EBML


def probe(source: VideoSource) -> VideoInfo:
    """Reads the packets of the first video stream and describes it.

    Raises:
        BadVideo: 'unreadable', 'no video stream', 'unsupported codec' or 'truncated'.
    """
    with open_video(source) as container:
        stream = container.streams.video[0]
        try:
            context = stream.codec_context
        except (AttributeError, RuntimeError):
            raise BadVideo("unsupported codec") from None
        if context is None or not context.width or not context.height:
            raise BadVideo("unreadable")
        frames, end = 0, 0.0
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise BadVideo("truncated")
                frames += 1
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.error.FFmpegError as error:
            raise BadVideo(reason_of(error)) from None
        rate = float(stream.average_rate or 0)
        if frames == 0:
            raise BadVideo("truncated" if stream.frames or stream.duration else "unreadable")
        if frames < stream.frames or _ends_early(stream, container, end, rate):
            raise BadVideo("truncated")
        return VideoInfo(context.name, context.width, context.height, frames, rate)


def reason_of(error: Exception) -> str:
    """The word of the status vocabulary for an error met while reading or decoding a video."""
    if isinstance(error, BadVideo):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no permission"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "unsupported codec"
    return "unreadable"


def _ends_early(stream: av.VideoStream, container: av.container.InputContainer, end: float, rate: float) -> bool:
    """Whether packets stop well before the duration that the header declares."""
    if stream.duration is not None and stream.time_base is not None:
        declared = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        declared = container.duration / av.time_base
    else:
        return False
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    slack = max(2 / rate if rate else 0.0, 0.02 * declared)
    return end - start < declared - slack
