"""The frames of a video of any length with their presentation times, and the declared duration.

Times count from the first frame, in whole microseconds, so that equal times compare equal. Where a file gives no time, or one
that does not increase, a frame follows the previous one at the average frame rate.

Damage does not end a video. What follows it refers to pictures that are lost, up to the next key frame:

    packets     K . . . x . . . K . . .        K key frames, x a damaged packet
    frames      0 1 2 3 [ gap ] 8 9 ...

A packet is damaged where the decoder says so, and where it leaves out a frame that the packet's header announces. Noise
that decodes to a picture is not noticed.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error

from ssv2rt.video.container import BadVideo, declared_duration, read_packets, video_stream
from ssv2rt.video.frame_counter import MOST_REORDERED, FrameCounter, codec_name

logger = logging.getLogger(__name__)


SECOND = 1_000_000
"""Microseconds."""
_USUAL_RATE = Fraction(12)
"""Frames per second where the container does not declare a rate."""
_LONGEST_STILL = 3600 * SECOND
"""A longer duration of a frame means that its time is damaged."""
_TIMED = frozenset({"matroska", "mov", "mpegts", "flv"})
"""Containers whose presentation times are those of the frames."""
_MOST_FAILURES = 100
"""After as many errors without a packet between them, reading ends."""


class TimedFrames:
    """The frames of a video with their times, and its declared duration, in microseconds.

    Args:
        container: at its beginning.
        threads: of the decoder.

    Raises:
        BadVideo: see `video_stream`.
    """

    def __init__(self, container: av.container.InputContainer, threads: int) -> None:
        self._container, self.stream = container, video_stream(container)
        self.stream.thread_type = "AUTO" if threads > 1 else "NONE"
        if threads > 1:
            self.stream.codec_context.thread_count = threads
        self._counter = FrameCounter(self.stream)
        self._tick = Fraction(self.stream.time_base or 0) * SECOND
        self.rate = Fraction(self.stream.average_rate or 0)
        if self.rate <= 0:
            self.rate = _USUAL_RATE
        self.usual = min(max(1, round(SECOND / self.rate)), _LONGEST_STILL)
        """Average duration of a frame."""
        likely = declared_duration(container, self.stream) or 0.0
        self.declared = round(likely * SECOND) if likely > 0 else None
        """End of the video as its header declares it; None if it does not."""
        self._first: tuple[int, int] | None = None  # the first stamp, and when its frame appears
        self._time = -1  # when the last frame appears
        self.end = 0
        """End of the last frame so far."""
        self.slack = 0
        """Uncertainty of that end: half of the frame's duration, or half of the average one."""
        self._latest: int | None = None  # when the last frame of all packets appears, in the stream's ticks
        self._reordered = False
        # MPEG-4 that was in an AVI with packed B frames has wrong times wherever it was copied to.
        timed = container.format.name.split(",")[0] in _TIMED and codec_name(self.stream) != "mpeg4"
        self._timed = self._counter.in_order or timed
        self._key: int | None = None  # stamp of the first key frame
        self._due: list[int] = []  # heap of the stamps of frames whose packets the decoder has
        self.offset: int | None = None
        """Of the last packet that was read, in bytes from the beginning of the file; None if it is not known."""

    def frames(self) -> Iterator[tuple[int, av.VideoFrame | None]]:
        """Yields every frame with its time; times increase. None marks a gap, from its time to that of the next frame.

        Raises:
            BadVideo: no packet gives a frame.
            OSError: the file cannot be read.
        """
        in_gap = False
        for packet in self._packets():
            found, damaged = self._decode(packet)
            for frame in found:
                lost = self._lost_before(frame)
                if (lost or frame.is_corrupt) and not in_gap:
                    in_gap = True
                    if self._time >= 0:
                        yield self.end, None
                if frame.is_corrupt or (in_gap and not frame.key_frame):
                    self._begin(frame.pts)
                    continue
                in_gap = False
                yield self._appears(frame), frame
            if damaged and not in_gap and self._time >= 0:
                in_gap = True
                yield self.end, None
        if self._time < 0:
            raise BadVideo("unreadable")
        if self._reordered:  # then MP4's durations are steps of decoding, and a pause may be one of the last frame's
            self.end = min(self.end, self._time + self.usual)
        if self._latest is not None:
            end = self._since_first(self._latest) + self.usual
            if in_gap:
                self.end = max(self.end, end)
            elif self._due or self.end < end - max(2 * self.usual, end // 50):
                yield self.end, None
                self.end = end

    def _packets(self) -> Iterator[av.Packet | None]:
        """Yields the packets with something in them, and None after the last one, for which decoders give what they hold."""
        failures = 0
        while failures < _MOST_FAILURES:
            try:
                for packet in read_packets(self._container, self.stream):
                    failures = 0
                    yield packet
                break
            except av.error.InvalidDataError:
                failures += 1  # reading may go on behind the damage
        yield None

    def _decode(self, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
        """The frames that come for a packet, and whether it is damaged."""
        if packet is not None:
            self.offset = packet.pos
            shown, _ = self._counter.take(packet)
            if self._counter.blank:
                return [], False
            if not self._counter.certain or (packet.is_discard and self._key is not None):
                self._distrust_times()
            if packet.pts is not None and not packet.is_discard:
                self._note_time(packet.pts)
                if self._key is None and packet.is_keyframe:
                    self._key = packet.pts
                if shown and self._timed and self._key is not None:
                    heapq.heappush(self._due, packet.pts)
        try:
            return self.stream.codec_context.decode(packet), False
        except av.error.FFmpegError:
            return [], True

    def _lost_before(self, frame: av.VideoFrame) -> bool:
        """Whether frames that packets should have shown before this one did not come: decoders may leave damage out."""
        if frame.pts is None:
            return False
        lost = False
        if self._first is None and self._key is not None and self._key < frame.pts:
            self._begin(self._key)
            lost = True
        while self._due and self._due[0] <= frame.pts:
            stamp = heapq.heappop(self._due)
            if stamp == frame.pts:
                break
            self._begin(stamp)
            lost = True
        return lost

    def _distrust_times(self) -> None:
        """From here on, times do not tell which frames are missing."""
        self._timed = False
        self._due.clear()

    def _begin(self, stamp: int | None) -> None:
        """The video begins at a frame with this stamp, unless it has begun. What cannot be shown of it is a gap."""
        if self._first is None and stamp is not None:
            self._first = stamp, 0

    def _note_time(self, stamp: int) -> None:
        latest = stamp if self._latest is None else self._latest
        self._reordered |= stamp < latest
        if self._microseconds(latest - stamp) > MOST_REORDERED * self.usual:  # streams that were joined
            self._distrust_times()
        if self._microseconds(stamp - latest) <= _LONGEST_STILL:  # a later one is damaged
            self._latest = max(latest, stamp)

    def _appears(self, frame: av.VideoFrame) -> int:
        time = self._time + self.usual if self._time >= 0 else 0
        if frame.pts is not None:
            if self._first is None:
                self._first = frame.pts, time
            stamped = self._since_first(frame.pts)
            if self._time < stamped <= self._time + _LONGEST_STILL:  # a later one is damaged
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
