"""Facts about a video, found by reading its container mostly without decoding more than one picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain, compress

import av
import av.error
import numpy as np

from ssv2rt.video.container import (
    CLIP_ERRORS,
    BadVideo,
    as_bad,
    open_video,
    read_packets,
    stops_at_damage,
    video_stream,
)
from ssv2rt.video.declared_size import ends_early
from ssv2rt.video.frame_counter import MOST_REORDERED, PacketTable, codec_name
from ssv2rt.video.pictures import read_pictures
from ssv2rt.video.seek import all_frames
from ssv2rt.video.storage import VideoSource

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
    """Reads the packets of the video stream and describes it. Where they do not tell the frames, it decodes them.

    Raises:
        BadVideo: a status word, see `container.reason_of`.
    """
    with open_video(source) as container:
        try:
            stream = video_stream(container)
            context = stream.codec_context
            if not context.width or not context.height:
                raise BadVideo("unreadable")
        except BadVideo as error:  # the end of the header may be missing
            raise BadVideo("truncated") if ends_early(source) else error from None
        codec = codec_name(stream)
        matrix = _MATRICES.get(int(context.colorspace), "")
        table = PacketTable(stream)
        lasts: list[int] = []  # how long each packet's picture stays
        packet: av.Packet | None = None
        try:
            for packet in read_packets(container, stream):
                if not lasts and codec == "vp9" and not matrix:
                    matrix = _VP9_MATRICES.get(read_pictures(codec, memoryview(packet))[0].color_space or 0, "")
                table.add(packet)
                lasts.append(packet.duration or 0)
        except av.error.FFmpegError as error:
            raise as_bad(error) from None
        if ends_early(source) or len(table.shown) < _declared_packets(container, stream):
            raise BadVideo("truncated")
        tick = float(stream.time_base or 0)
        rate = float(stream.average_rate or 0)
        if table.certain:
            frames = sum(table.shown)
            each = zip(table.stamps, lasts, table.shown, strict=True)
            shown = [(stamp, last) for stamp, last, count in each if count and stamp is not None]
        else:
            frames, shown = _count_by_decoding(source)
        if frames == 0:
            raise BadVideo("unreadable")
        times, duration = _timing(shown, tick)
        if stops_at_damage(source, container, stream, duration, None if packet is None else packet.pos):
            raise BadVideo("corrupt")
        rotation = _rotation(source, container, stream)
        turned = rotation in (90, 270)
        return VideoInfo(
            frames=frames,
            width=context.height if turned else context.width,
            height=context.width if turned else context.height,
            duration=duration or (frames / rate if rate else 0.0),
            times=times if times is not None and len(times) == frames else None,
            container=container.format.name.split(",")[0],
            codec=codec,
            profile=stream.profile or "",
            pixels=context.pix_fmt or "",
            matrix=matrix,
            rotation=rotation,
            rate=rate,
            key_frames=sum(map(bool, compress(table.shown, table.keys))),
            streams=len(container.streams.video),
        )


def _declared_packets(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """How many packets the index of an MP4 file has, without those that an edit list leaves out; 0 for other files."""
    return len(stream.index_entries) if "mov" in container.format.name else 0


def _count_by_decoding(source: VideoSource) -> tuple[int, list[tuple[int, int]]]:
    """Counts the frames that a decoder shows, damaged ones too.

    Returns:
        Their number, and of those with a time when each appears and how long it stays, in ticks.
    """
    count = 0
    shown: list[tuple[int, int]] = []
    with open_video(source) as container:
        stream = video_stream(container)
        for packet in chain(read_packets(container, stream), (None,)):
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                continue  # decoding the clip will say what is wrong
            count += len(frames)
            shown += [(frame.pts, frame.duration or 0) for frame in frames if frame.pts is not None]
    return count, shown


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
    try:
        for number, frame in all_frames(source):
            if frame.is_corrupt:
                raise BadVideo("corrupt")
            shown = number + 1
    except av.error.FFmpegError as error:
        raise as_bad(error, begun=shown > 0) from None
    return shown


def _timing(shown: list[tuple[int, int]], tick: float) -> tuple[np.ndarray | None, float]:
    """When frames appear and when the last one ends, in seconds from the first.

    Args:
        shown: when each frame appears, and how long its packet says that it stays, in ticks and in the order of decoding.
        tick: seconds.

    Returns:
        float32 (frames,), or None where they are evenly spaced or the times mean nothing; and the end, 0 if it is unknown.
    """
    if not shown or not tick:
        return None, 0.0
    stays: float = max(shown)[1]
    ticks = np.array([stamp for stamp, _ in shown], np.int64)
    if len(ticks) == 1:
        return None, stays * tick
    steps = ticks[1:] - ticks[:-1]
    least = int(steps.min())
    back = -least  # farthest step back
    if back > 0:
        ticks.sort()
        steps = ticks[1:] - ticks[:-1]
        least = int(steps.min())
    ticks -= ticks[0]
    usual = float(np.partition(steps, len(steps) // 2)[len(steps) // 2])
    if least == 0 or back > MOST_REORDERED * usual:
        return None, 0.0  # frames share a time, or the clock starts again, as in streams that were joined
    if back > 0:  # then MP4's durations are steps of decoding, and a pause may be one of the last frame's
        stays = min(stays, usual)
    # Containers round times to ticks: only more than that, and more than a tenth of a frame, is uneven.
    uneven = max(int(steps.max()) - usual, usual - least) > max(1.5, 0.1 * usual)
    return (ticks * tick).astype(np.float32) if uneven else None, (float(ticks[-1]) + (stays or usual)) * tick


_NEVER_TURNED = frozenset({"vp8", "vp9", "av1", "mpeg4"})
"""Codecs whose frames say nothing of a turn; then only MP4 and its kin do."""


def _rotation(source: VideoSource, container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Degrees counter-clockwise, which only a decoded frame tells."""
    if "mov" not in container.format.name and codec_name(stream) in _NEVER_TURNED:
        return 0
    try:
        with open_video(source) as again:
            return int(next(again.decode(video_stream(again))).rotation) % 360
    except (StopIteration, *CLIP_ERRORS):
        return 0  # decoding will say what is wrong
