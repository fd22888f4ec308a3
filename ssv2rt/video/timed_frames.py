"""The frames of a video of any length with their presentation times, and the declared duration.

Times count from the first frame, in whole microseconds, so that equal times compare equal. Where a file gives no time, or one
that does not increase, a frame follows the previous one at the average frame rate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error

from ssv2rt.video.container import BadVideo, declared_duration, video_stream

logger = logging.getLogger(__name__)


SECOND = 1_000_000
"""Microseconds."""
_USUAL_RATE = Fraction(12)
"""Frames per second where the container does not declare a rate."""
_LONGEST_STILL = 3600 * SECOND
"""A longer duration of a frame means that its time is damaged."""


class TimedFrames:
    """The frames of a video with their times, and its declared duration, in microseconds.

    Args:
        container: at its beginning.
        threads: of the decoder.

    Raises:
        BadVideo: see `video_stream`.
    """

    def __init__(self, container: av.container.InputContainer, threads: int) -> None:
        self._container, self._stream = container, video_stream(container)
        self._stream.thread_type = "AUTO" if threads > 1 else "NONE"
        if threads > 1:
            self._stream.codec_context.thread_count = threads
        self._tick = Fraction(self._stream.time_base or 0) * SECOND
        self.rate = Fraction(self._stream.average_rate or 0)
        if self.rate <= 0:
            self.rate = _USUAL_RATE
        self.usual = min(max(1, round(SECOND / self.rate)), _LONGEST_STILL)
        """Average duration of a frame."""
        self._sure = declared_duration(container, self._stream)
        likely = self._sure or declared_duration(container, self._stream, others=True) or 0.0
        self.declared = round(likely * SECOND) if likely > 0 else None
        """End of the video as its header declares it; None if it does not."""
        self._first: tuple[int, int] | None = None  # the first stamp, and when its frame appears
        self._time = -1  # when the last frame appears
        self.end = 0
        """End of the last frame so far."""
        self.slack = 0
        """Uncertainty of that end: half of the frame's duration, or half of the average one."""
        self._packets = 0
        self._last: int | None = None  # the end of the last packet's frame, in the stream's ticks

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields every frame with its time; times increase.

        Raises:
            BadVideo: a packet or a frame is damaged.
            av.error.FFmpegError: the file cannot be read, or a packet cannot be decoded.
        """
        wrong: Exception | None = None
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                packet, wrong = None, error
            if packet is not None and packet.is_corrupt:
                packet, wrong = None, BadVideo("truncated")
            if packet is not None and not packet.size:
                continue
            if packet is not None:
                self._count(packet)
            # After the last one come the frames that the decoder keeps back, also where the file is damaged from there.
            for frame in self._stream.codec_context.decode(packet):
                if frame.is_corrupt:
                    raise BadVideo("corrupt")
                yield self._appears(frame), frame
            if packet is None:
                break
        if wrong:
            raise wrong

    def check(self) -> None:
        """Checks, after the last frame, that everything that the file declares was there.

        Raises:
            BadVideo: 'unreadable' if no packet gave a frame, 'corrupt' if the last ones gave none, 'truncated' if some
                are missing.
        """
        if self._time < 0 and self._packets:
            raise BadVideo("unreadable")
        if self._first and self._last and self._ends_before(self._since_first(self._last)):
            raise BadVideo("corrupt")
        # An AVI counts frames that were dropped, which are no packets; its duration counts them too.
        counted = 0 if self._container.format.name == "avi" else self._stream.frames
        if self._packets < counted or (self._sure and self._ends_before(round(self._sure * SECOND))):
            raise BadVideo("truncated")

    def _ends_before(self, end: int) -> bool:
        return self.end < end - max(2 * self.usual, end // 50)

    def _count(self, packet: av.Packet) -> None:
        self._packets += 1
        if packet.pts is not None and not packet.is_discard:
            end = packet.pts + (packet.duration or 0)
            self._last = end if self._last is None else max(self._last, end)

    def _appears(self, frame: av.VideoFrame) -> int:
        time = self._time + self.usual if self._time >= 0 else 0
        if frame.pts is not None:
            if self._first is None:
                self._first = frame.pts, time
            stamped = self._since_first(frame.pts)
            if stamped > self._time + _LONGEST_STILL:
                raise BadVideo("corrupt")
            if stamped > self._time:
                time = stamped
        stays = self._microseconds(frame.duration or 0)
        if not 0 < stays <= _LONGEST_STILL:
            stays = self.usual
        self._time, self.end, self.slack = time, time + stays, min(stays, self.usual) // 2
        return time

    def _since_first(self, stamp: int) -> int:
        assert self._first is not None
        return self._first[1] + self._microseconds(stamp - self._first[0])

    def _microseconds(self, ticks: int) -> int:
        return round(ticks * self._tick)
