"""Opening a video file: choosing the stream, its rotation, and the status words for what can be wrong."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
import numpy as np
from av.stream import Disposition

from ssv2rt.core.errors import UserError
from ssv2rt.video.declared_size import ends_early, has_blocks_behind
from ssv2rt.video.frame_counter import codec_name
from ssv2rt.video.matroska import EBML
from ssv2rt.video.pictures import CODECS as VPX
from ssv2rt.video.storage import VideoLocation, VideoSource, open_bytes

logger = logging.getLogger(__name__)


# Broken clips are reported once, by this package. With any other level, a decoder thread that logs damage waits for the GIL,
# and deadlocks with a thread that holds the GIL while it closes the decoder.
av.logging.set_level(None)


_REFUSED = frozenset(
    {
        *("concat", "concatf", "dash", "hls", "imf", "sdp", "webm_dash_manifest"),  # lists of other files or addresses
        *("rtp", "rtsp", "sap", "image2", "image2pipe"),  # the network; files by a pattern
    }
)
_FORMATS = ",".join(sorted(name for name in av.formats_available if not _REFUSED & set(name.split(","))))
"""The demuxers that FFmpeg may use: none that opens anything but the file or the bytes that it is given."""


ODD_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""How PyAV opens files with tags that are not UTF-8. Since version 19 it always takes them, and has no such option."""


OK = "ok"
"""The status of a usable video; `reason_of` gives the others."""


class BadVideo(Exception):
    """A video that cannot be used. The message is a status word, see `reason_of`."""


CLIP_ERRORS = (BadVideo, OSError, ValueError, av.error.FFmpegError, RuntimeError, ArithmeticError, MemoryError)
"""What libraries raise for a broken file. Only the clip of that file is lost."""


def open_video(source: VideoSource) -> av.container.InputContainer:
    """Opens a container for reading.

    Raises:
        BadVideo: it cannot be opened ('truncated' if it ends before what it declares), or has no video stream.
    """
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise BadVideo("unreadable")  # a folder; or a pipe or a device, on which one could wait for ever
        if _is_matroska(source):
            # FFmpeg decodes a picture of each stream to describe it, a tenth of the work of a clip. Matroska's header
            # says enough for these codecs, but not which of several streams is the best.
            container = _open(source, {"codec_whitelist": "none"}, "matroska")
            if len(container.streams.video) == 1 and _all_vpx(container):
                return container
            container.close()
        container = _open(source, {})
    except CLIP_ERRORS as error:
        raise BadVideo(_why_not(source, as_bad(error))) from None
    if not container.streams.video:
        container.close()
        raise BadVideo("truncated" if ends_early(source) else "no video stream")
    return container


def _why_not(source: VideoSource, error: BadVideo) -> str:
    """The status word for a file that FFmpeg cannot open."""
    try:
        if str(error) != "unreadable" or (isinstance(source, Path) and not source.is_file()):
            return str(error)
        with open_bytes(source) as file:
            head = file.read(512)
        if not head:
            return "empty file"
        for begins, word in _NO_VIDEOS:
            if head.lstrip().lower().startswith(begins):
                return word
        return "truncated" if ends_early(source) else str(error)
    except OSError:
        return str(error)


_NO_VIDEOS = (
    (b"version https://git-lfs", "Git LFS pointer"),
    (b"<!doctype html", "web page"),
    (b"<html", "web page"),
)
"""What is often found in place of a video, by how it begins."""


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that a player shows: FFmpeg's best one, or the first, if that is a cover picture.

    Raises:
        BadVideo: 'no video stream', or 'unsupported codec' if there is no decoder for it.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadVideo("no video stream")
    best = container.streams.best("video")
    chosen = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    if chosen.codec_context is None:
        raise BadVideo("unsupported codec")
    return chosen


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yields the packets of a stream that have at least one byte, in the order of the file.

    Raises:
        av.error.FFmpegError: damage that is not read over.
    """
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except IndexError:
        pass  # PyAV's, behind the last packet, where FFmpeg met a stream that it had not known when it opened the file


def as_bad(error: Exception, *, begun: bool = False) -> BadVideo:
    """Converts an error met while reading or decoding a video.

    Args:
        error: it.
        begun: whether some of its frames were decoded; then the video is 'corrupt' rather than 'unreadable'.

    Raises:
        Exception: the error itself, if the video is not its cause. See `is_process_error`.
    """
    if is_process_error(error):
        raise error
    reason = reason_of(error)
    return BadVideo("corrupt" if begun and reason == "unreadable" else reason)


def is_process_error(error: BaseException) -> bool:
    """Whether an error has another cause than the video: too many open files, or storage that is gone."""
    return isinstance(error, OSError) and error.errno in _FAULTS


def process_error(place: VideoLocation, error: BaseException) -> UserError:
    """The message for such an error."""
    remedy = "see that the storage is there, and that `ulimit -n` allows enough open files"
    return UserError(f"cannot read '{place}': {error}; {remedy}")


_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN})


def declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds from the first frame to the end of the last, as the header has it; None if it does not say.

    Where only the duration of the whole file is declared, another of its streams may last longer than the video.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None:
        return None
    # Matroska and Flash tell when the last frame ends, on a clock that the first one need not start.
    return container.duration / av.time_base - float((stream.start_time or 0) * (stream.time_base or 0))


def stops_at_damage(
    source: VideoSource, container: av.container.InputContainer, stream: av.VideoStream, end: float, offset: int | None
) -> bool:
    """Whether packets ended before the declared duration because the file is damaged there.

    Args:
        source: the video.
        container: of it.
        stream: of it.
        end: seconds from the first frame to the end of the last one that was read.
        offset: of the last packet in the file, if it is known.
    """
    declared = declared_duration(container, stream)
    if declared is None or end > 0.98 * declared or not container.format.name.startswith("matroska"):
        return False
    return offset is not None and has_blocks_behind(source, offset)


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame is to be shown: transposed first, then mirrored left to right, then top to bottom."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses to list side data of a kind that it does not know; rotation it tells all the same
        turns = round(frame.rotation / 90) % 4
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[turns]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    return (True, bool(c < 0), bool(b < 0)) if abs(b) > abs(a) else (False, bool(a < 0), bool(d < 0))


def reason_of(error: Exception) -> str:
    """The status word for an error met while reading or decoding a video."""
    if isinstance(error, BadVideo):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError) and not (
        isinstance(error, av.error.FFmpegError) and error.errno == errno.EPERM
    ):
        return "no permission"  # FFmpeg's own EPERM is the -1 that some of its decoders return for damage
    if isinstance(error, av.error.DecoderNotFoundError):
        return "unsupported codec"
    if isinstance(error, MemoryError) and not isinstance(error, av.error.FFmpegError):
        return "out of memory"  # FFmpeg's own error is about a damaged size
    return "unreadable"


def _all_vpx(container: av.container.InputContainer) -> bool:
    return all(s.codec_context and codec_name(s) in VPX for s in container.streams.video)


def _open(source: VideoSource, options: dict[str, str], format: str | None = None) -> av.container.InputContainer:
    if isinstance(source, Path):
        handle: Any = f"file:{source}"  # 12:30.mp4 is no address
    else:
        handle = open_bytes(source)
    # FFmpeg decides by these before it opens anything: it would follow lists of files, and bind ports for an SDP file.
    options = options | {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(handle, mode="r", buffer_size=1 << 18, options=options, format=format, **ODD_TAGS)


def _is_matroska(source: VideoSource) -> bool:
    if isinstance(source, bytes):
        return source[:4] == EBML
    with source.open("rb") as file:
        return file.read(4) == EBML
