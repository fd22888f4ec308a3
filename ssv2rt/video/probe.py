"""Facts about a video, found by reading its container without decoding more than one picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import av
import av.error
import numpy as np

from ssv2rt.video.container import (
    CLIP_ERRORS,
    BadVideo,
    VideoSource,
    as_bad,
    declared_duration,
    open_video,
    video_stream,
)
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import frames_and_key, read_pictures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoMeta:
    """The facts that a clip request needs."""

    frames: int
    """At least 1."""
    width: int
    """Pixels of an upright frame: after the rotation that a phone's video declares."""
    height: int
    duration: float = 0.0
    """Seconds from the first frame to the end of the last; 0 if unknown."""
    times: np.ndarray | None = None
    """float32 (frames,): seconds from the first frame at which each appears; None where they are evenly spaced."""


@dataclass(frozen=True)
class VideoInfo(VideoMeta):
    """A video stream as its container describes it."""

    container: str = ""
    """FFmpeg's name, such as matroska, mov, avi."""
    codec: str = ""
    """FFmpeg's name: vp9, h264, mpeg4, ..."""
    profile: str = ""
    pixels: str = ""
    """FFmpeg's name of the pixel format, such as yuv420p10le; empty where only decoding would tell."""
    matrix: str = ""
    """The YUV matrix: bt601, bt709, ...; empty if the file does not say."""
    rotation: int = 0
    """Degrees by which frames are rotated counter-clockwise for display: 0, 90, 180 or 270."""
    rate: float = 0.0
    """Frames per second on average; 0 if unknown."""
    key_frames: int = 0
    """Frames at which decoding can begin."""
    streams: int = 1
    """Number of video streams in the file; one is used."""

    @property
    def variable(self) -> bool:
        """Whether frames are unevenly spaced in time."""
        return self.times is not None


def probe(source: VideoSource) -> VideoInfo:
    """Reads the packets of the video stream and describes it.

    Raises:
        BadVideo: 'unreadable', 'no video stream', 'unsupported codec' or 'truncated'.
    """
    with open_video(source) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if not context.width or not context.height:
            raise BadVideo("unreadable")
        matrix = _MATRICES.get(int(context.colorspace), "")
        stamps: list[int] = []
        keys = frames = packets = 0
        codec = context.name
        end: tuple[int, int] = (0, 0)  # when the last frame appears, and how long it stays
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                packets += 1
                if packet.is_corrupt:
                    raise BadVideo("truncated")
                shown, key = 1, packet.is_keyframe
                if codec in WITH_HEADERS:
                    pictures = read_pictures(codec, memoryview(packet))
                    shown, key = frames_and_key(pictures)
                    if not frames and not matrix:
                        matrix = _VP9_MATRICES.get(pictures[0].color_space or 0, "")
                if shown and (pts := packet.pts if packet.pts is not None else packet.dts) is not None:
                    end = max(end, (pts, packet.duration or 0))
                if packet.is_discard:
                    continue
                frames += shown
                keys += key
                if packet.pts is not None and shown:
                    stamps.append(packet.pts)
        except av.error.FFmpegError as error:
            raise as_bad(error) from None
        if frames == 0:
            raise BadVideo("truncated" if stream.frames or stream.duration else "unreadable")
        tick = float(stream.time_base or 0)
        rate = float(stream.average_rate or 0)
        times, usual = _timing(stamps, tick)
        last = (end[0] + (end[1] or usual)) * tick
        # An AVI counts frames that were dropped, which are no packets; its duration counts them too.
        counted = 0 if container.format.name == "avi" else stream.frames
        if packets < counted or _ends_early(stream, container, last, rate):
            raise BadVideo("truncated")
        rotation = _rotation(source, container, stream)
        turned = rotation in (90, 270)
        return VideoInfo(
            frames=frames,
            width=context.height if turned else context.width,
            height=context.width if turned else context.height,
            duration=max(0.0, last - min(stamps, default=0) * tick) or (frames / rate if rate else 0.0),
            times=times if times is not None and len(times) == frames else None,
            container=container.format.name.split(",")[0],
            codec=context.name,
            profile=stream.profile or "",
            pixels=context.pix_fmt or "",
            matrix=matrix,
            rotation=rotation,
            rate=rate,
            key_frames=keys,
            streams=len(container.streams.video),
        )


_MATRICES = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020",
    10: "bt2020",
}
"""By FFmpeg's numbers, which are those of ITU-T H.273."""


_VP9_MATRICES = {1: "bt601", 2: "bt709", 3: "bt601", 4: "smpte240m", 5: "bt2020", 7: "rgb"}
"""By VP9's own numbers (VP9 bitstream specification 0.6, section 7.2.2)."""


def decode_fully(source: VideoSource) -> int:
    """Decodes every frame, and returns their number.

    Raises:
        BadVideo: 'corrupt', or as `probe`.
    """
    shown = 0
    with open_video(source) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"  # clips are decoded side by side
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadVideo("corrupt")
                shown += 1
        except av.error.FFmpegError as error:
            raise as_bad(error) from None
    return shown


def _timing(stamps: list[int], tick: float) -> tuple[np.ndarray | None, float]:
    """When frames appear, in seconds, if unevenly; and how long one usually stays, in ticks.

    Args:
        stamps: presentation times of the packets, in ticks.
        tick: seconds.
    """
    if len(stamps) < 2 or not tick:
        return None, 0.0
    ticks = np.sort(np.array(stamps, np.int64))
    ticks -= ticks[0]
    steps = np.diff(ticks)
    usual = float(np.sort(steps)[len(steps) // 2])
    # Containers round times to ticks: only more than that, and more than a tenth of a frame, is uneven.
    uneven = float(np.abs(steps - usual).max()) > max(1.5, 0.1 * usual)
    return (ticks * tick).astype(np.float32) if uneven else None, usual


_NEVER_TURNED = frozenset({"vp8", "vp9", "av1", "mpeg4"})
"""Codecs whose frames say nothing of a turn; then only MP4 and its kin do."""


def _rotation(source: VideoSource, container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Degrees counter-clockwise, which only a decoded frame tells."""
    if "mov" not in container.format.name and stream.codec_context.name in _NEVER_TURNED:
        return 0
    try:
        with open_video(source) as again:
            return int(next(again.decode(video_stream(again))).rotation) % 360
    except (StopIteration, *CLIP_ERRORS):
        return 0  # decoding will say what is wrong


def _ends_early(stream: av.VideoStream, container: av.container.InputContainer, end: float, rate: float) -> bool:
    """Whether packets stop well before the duration that the header declares."""
    declared = declared_duration(container, stream)
    if declared is None:
        return False
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    slack = max(2 / rate if rate else 0.0, 0.02 * declared)
    return end - start < declared - slack
