"""What is a frame: what a decoder shows. Counts the frames of packets by their headers.

A packet is not a frame. It may hold a hidden picture (VP8, VP9), one field of two (H.264), a picture that refers to others
that were cut off (HEVC, MPEG-2), or none at all:

    packets     [ A ] [ hidden ] [ B ] [ field ] [ field ] [ delimiter ] [ C ]
    frames        0                1        2                              3

Where headers do not tell, only decoding does: `FrameCounter.certain` is false from there on. A packet of noise counts as the
frame that it was: decoding it will say that it is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import av

from ssv2rt.video.bits import Buffer
from ssv2rt.video.h264 import H264Reader
from ssv2rt.video.hevc import HevcReader
from ssv2rt.video.mpeg import Mpeg4Reader, Mpeg12Reader
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import frames_and_key


class _Reader(Protocol):
    blank: bool

    def read(self, packet: Buffer) -> int | None: ...


_READERS: dict[str, Callable[[bytes], _Reader]] = {
    "h264": H264Reader,
    "hevc": HevcReader,
    "mpeg1video": Mpeg12Reader,
    "mpeg2video": Mpeg12Reader,
    "mpeg4": Mpeg4Reader,
}
_ONE_EACH = frozenset({"h263", "flv1", "msmpeg4v3", "msmpeg4v2", "gif", "png", "apng", "ffv1", "qtrle", "cinepak"})
"""Codecs whose pictures refer to each other, and whose packets always show one frame."""
_ONE_EACH_IN = {"av1": frozenset({"matroska", "mov", "ivf", "obu"})}
"""Containers by codec: in these, FFmpeg's packets are AV1's temporal units, each of which shows one frame."""
MOST_REORDERED = 32
"""Frames by which a picture is decoded before it is shown, at most; H.264 and HEVC allow 16."""


def codec_name(stream: av.VideoStream) -> str:
    """FFmpeg's name of a stream's codec, such as av1; not that of the decoder, such as libdav1d."""
    return stream.codec_context.codec.canonical_name


class FrameCounter:
    """Counts the frames that the packets of a stream show.

    Args:
        stream: the packets' stream.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        codec = codec_name(stream)
        container = stream.container.format.name.split(",")[0]
        self._codec = codec
        self._vpx = codec in WITH_HEADERS
        self._reader = _READERS[codec](stream.codec_context.extradata or b"") if codec in _READERS else None
        self.certain = (
            self._vpx
            or self._reader is not None
            or codec in _ONE_EACH
            or stream.codec_context.codec.intra_only
            or container in _ONE_EACH_IN.get(codec, ())
        )
        """Whether the headers of all packets so far told how many frames they show."""
        self.in_order = self._vpx or stream.codec_context.codec.intra_only
        """Whether frames are shown in the order of their packets, so that their times need not be known."""
        self._begun = False  # whether there was a key frame; of VP8 and VP9
        self.blank = False
        """Whether the last packet is a lone delimiter or the like, which a decoder would call an error."""

    def take(self, packet: av.Packet) -> tuple[int, bool]:
        """How many frames a packet shows, and whether decoding can begin at it.

        Args:
            packet: the next of the stream, with at least one byte.
        """
        if self._vpx:
            counted = frames_and_key(self._codec, memoryview(packet))
            if not self._begun:
                self._begun = counted[1]
                self.certain &= self._begun  # before a key frame nothing can be decoded
            return counted
        frames: int | None = 1
        self.blank = False
        if self._reader and self.certain:
            frames = self._reader.read(memoryview(packet))
            self.certain, self.blank = frames is not None, self._reader.blank
        return frames or 0, packet.is_keyframe


class PacketTable:
    """What the packets of a stream, in the order of decoding, show. P packets.

    Args:
        stream: the packets' stream.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        self._counter = FrameCounter(stream)
        self._take = self._counter.take
        self.shown: list[int] = []
        """P numbers of frames."""
        self.keys: list[bool] = []
        """Whether decoding can begin at each, if its file is right."""
        self.stamps: list[int | None] = []
        """When each appears, in ticks; None where the container does not say."""
        self.discarded = False
        """Whether an edit list leaves packets out: they are decoded and not shown."""

    def add(self, packet: av.Packet) -> None:
        """Adds the next packet, which has at least one byte."""
        shown, key = self._take(packet)
        if packet.is_discard:
            shown, self.discarded = 0, True
        self.shown.append(shown)
        self.keys.append(key)
        self.stamps.append(packet.pts)

    @property
    def blank(self) -> bool:
        """See `FrameCounter.blank`."""
        return self._counter.blank

    @property
    def certain(self) -> bool:
        """Whether headers told how many frames there are; only decoding tells otherwise."""
        return self._counter.certain

    @property
    def in_order(self) -> bool:
        """See `FrameCounter.in_order`."""
        return self._counter.in_order
