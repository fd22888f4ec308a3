"""Writes videos that browsers play: H.264 in MP4, whose index comes first, so that playing starts before all is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.codec
import av.error
import numpy as np

from ssv2rt.core.errors import UserError
from ssv2rt.video.timed_frames import SECOND

_ENCODER = "libx264"
_BT709 = 1
"""What players assume where a file does not say; this one says it."""
_TAG = "comment"


def cannot_write_reason() -> str:
    """Why no video can be written here, and what to do about it; empty if it can."""
    if _ENCODER in av.codec.codecs_available:
        return ""
    return f"PyAV {av.__version__} has no H.264 encoder ({_ENCODER}); install it from PyPI: pip install --force-reinstall av"


class Mp4Writer:
    """Writes one video.

    Args:
        path: the file, which must not be in use.
        size: width and height in pixels, both even.
        comment: text that `comment_of` reads.
    """

    def __init__(self, path: Path, size: tuple[int, int], comment: str) -> None:
        self._path = path
        with self._user_errors():
            self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"})
            self._container.metadata[_TAG] = comment
            # Without B frames, packets are in the order of frames, and times begin at 0 without an edit list.
            options = {"preset": "veryfast", "crf": "21", "bf": "0", "threads": "1"}
            stream = self._container.add_stream(_ENCODER, rate=Fraction(30), options=options)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, SECOND)
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # limited
        self._waiting: tuple[int, np.ndarray] | None = None
        self._stays: dict[int, int] = {}

    def add(self, time: int, picture: np.ndarray) -> None:
        """Adds a frame.

        Args:
            time: when it appears, in microseconds; later than the one before.
            picture: uint8 RGB (H, W, 3).

        Raises:
            UserError: the file cannot be written.
        """
        if self._waiting is not None:
            self._encode(until=time)
        self._waiting = time, picture

    def close(self, end: int) -> None:
        """Completes the file, whose last frame is shown until `end`, in microseconds. Raises UserError as `add` does."""
        if self._waiting is not None:
            self._encode(until=max(end, self._waiting[0] + 1))
        with self._user_errors():
            self._mux(self._stream.encode(None))
            self._container.close()

    def abandon(self) -> None:
        """Closes the file as it is."""
        with contextlib.suppress(OSError, av.error.FFmpegError):
            self._container.close()

    def _encode(self, until: int) -> None:
        assert self._waiting is not None
        time, picture = self._waiting
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=1)
        frame.colorspace, frame.color_range = _BT709, 1
        frame.pts, frame.time_base = time, Fraction(1, SECOND)
        self._stays[time] = until - time
        with self._user_errors():
            self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._stays.pop(packet.pts) if packet.pts is not None else 0
            self._container.mux(packet)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            raise UserError(f"cannot write '{self._path.parent}': {error.strerror or error}; make room") from None


def comment_of(path: Path) -> str:
    """The comment of a video that `Mp4Writer` has completed; empty if it is none."""
    with contextlib.suppress(OSError, av.error.FFmpegError, ValueError), av.open(f"file:{path}") as container:
        return container.metadata.get(_TAG, "")
    return ""
