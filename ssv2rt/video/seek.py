"""Which packets must be decoded for which frames.

A frame's number is its place in display order. It depends on the packets from the key frame before it to its own:

    packets     K . . . . K . . . . K . . .
    wanted            ^             ^
    decoded     K . . .             K          the rest is read and left alone

Letters: P packets, F frames, K wanted frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import av
import numpy as np

from ssv2rt.video.container import BadVideo, VideoSource, open_video, video_stream
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import frames_and_key, read_pictures

_IN_ORDER = WITH_HEADERS | {"mjpeg"}
"""Codecs that show their pictures in the order of decoding, so that nothing has to be known of their times."""
_TIMED = frozenset({"matroska", "mov"})
"""Containers that give every packet a presentation time."""
_HELD = 64 << 20
"""Bytes of packets that are kept from the first pass over a file. Larger files are read again."""

Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames with their numbers, from 0."""


def all_frames(source: VideoSource, expected: int) -> Frames:
    """Yields all frames, in order.

    Args:
        source: the video.
        expected: number of frames when the file was probed.

    Raises:
        BadVideo: it cannot be opened; 'truncated' if it has fewer frames now.
    """
    coded = number = 0
    with open_video(source) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"  # clips are decoded side by side
        for packet in container.demux(stream):
            if packet.size:
                coded += _shown(stream.codec_context.name, packet)[0]
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                yield number, frame
                number += 1
    if coded < expected:
        raise BadVideo("truncated")


def frames_needed(source: VideoSource, expected: int, wanted: np.ndarray) -> Frames:
    """Yields the wanted frames, and the frames that must be decoded before them, in order.

    Where packets have to be read twice, the file is opened anew: seeking to time 0 may not lead to the first packet.

    Args:
        source: the video.
        expected: as in `all_frames`.
        wanted: int (K,), sorted; numbers behind the last frame are ignored.

    Raises:
        BadVideo: as `all_frames`.
    """
    with open_video(source) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"
        codec = stream.codec_context.name
        in_order = codec in _IN_ORDER
        countable = in_order or container.format.name.split(",")[0] in _TIMED
        packets: list[av.Packet] = []
        keys: list[bool] = []
        shown: list[int] = []
        stamps: list[int | None] = []
        size = 0
        for packet in container.demux(stream) if countable else ():
            if packet.size:
                count, key = _shown(codec, packet)
                shown.append(count)
                keys.append(key)
                stamps.append(None if packet.is_discard else packet.pts)
                size += packet.size
                if size > _HELD:
                    packets.clear()
                else:
                    packets.append(packet)
        if countable and sum(shown) < expected:
            raise BadVideo("truncated")
        known = {} if in_order else _numbers(stamps)
        # Where times are missing or doubled, only counting tells which frame is which.
        if countable and (in_order or len(known) == len(keys)):
            if in_order:
                packet_of = np.repeat(np.arange(len(keys)), shown)
                first = np.cumsum([0, *shown[:-1]])
            else:
                first = np.array([known[stamp] for stamp in stamps if stamp is not None])
                packet_of = np.argsort(first)
            needed = packets_needed(np.array(keys, bool), first, packet_of, wanted)
            if packets:
                yield from _decoded(packets, stream.codec_context, needed, first, known)
            else:
                with open_video(source) as again:
                    stream = video_stream(again)
                    stream.thread_type = "NONE"
                    read = (packet for packet in again.demux(stream) if packet.size)
                    yield from _decoded(read, stream.codec_context, needed, first, known)
            return
    yield from all_frames(source, expected)


def _decoded(
    packets: Iterable[av.Packet],
    context: av.VideoCodecContext,
    needed: np.ndarray,
    first: np.ndarray,
    known: Mapping[int, int],
) -> Frames:
    """Decodes the needed packets.

    Args:
        packets: P of them, in the order of decoding.
        context: their decoder.
        needed: bool (P,): which are decoded.
        first: int (P,): number of the first frame that each shows.
        known: numbers of frames by their times; empty where frames come in the order of packets.
    """
    before = -1  # the packet decoded last

    def frames(packet: av.Packet | None) -> Frames:
        for place, frame in enumerate(context.decode(packet)):
            if not known:
                yield int(first[before]) + place, frame
            elif frame.pts is not None and frame.pts in known:
                yield known[frame.pts], frame

    for at, packet in enumerate(packets):
        if not needed[at]:
            continue
        if at != before + 1 and before >= 0:
            yield from frames(None)
            context.flush_buffers()
        before = at
        yield from frames(packet)
    if before >= 0:
        yield from frames(None)


def _shown(codec: str, packet: av.Packet) -> tuple[int, bool]:
    """How many frames a packet gives, and whether decoding can begin at it."""
    if codec not in WITH_HEADERS:
        return 1, packet.is_keyframe
    return frames_and_key(read_pictures(codec, memoryview(packet)))


def _numbers(stamps: list[int | None]) -> dict[int, int]:
    """Number in display order of each time, as far as times are known and differ."""
    return {stamp: number for number, stamp in enumerate(sorted({s for s in stamps if s is not None}))}


def packets_needed(keys: np.ndarray, first: np.ndarray, packet_of: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which packets have to be decoded.

    Args:
        keys: bool (P,): in the order of decoding, at which packets decoding can begin.
        first: int (P,): the first frame that is shown by each packet or, if it shows none, behind it.
        packet_of: int (F,): which packet shows each frame.
        wanted: int (K,)

    Returns:
        bool (P,)
    """
    needed = np.zeros(len(keys), bool)
    starts = np.flatnonzero(keys)
    starts = starts[np.argsort(first[starts], kind="stable")]
    for frame in np.unique(wanted[wanted < len(packet_of)]):
        at = np.searchsorted(first[starts], frame, side="right") - 1
        needed[starts[at] if at >= 0 else 0 : packet_of[frame] + 1] = True
    return needed
