"""Which packets must be decoded for which frames.

A frame's number is its place in display order. It depends on the packets from the key frame before it to its own:

    packets     K . . . . K . . . . K . . .
    wanted            ^             ^
    decoded     K . . .             K          the rest is read and left alone

Letters: P packets, F frames, K wanted frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np

from ssv2rt.video.container import BadVideo
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import read_pictures

_IN_ORDER = WITH_HEADERS | {"mjpeg"}
"""Codecs that show their pictures in the order of decoding, so that nothing has to be known of their times."""
_TIMED = frozenset({"matroska", "mov"})
"""Containers that give every packet a presentation time."""
_HELD = 64 << 20
"""Bytes of packets that are kept from the first pass over a file. Larger files are read again."""

Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames with their numbers, from 0."""


def all_frames(container: av.container.InputContainer, stream: av.VideoStream, expected: int) -> Frames:
    """All frames, in order.

    Args:
        container: at its beginning.
        stream: of it.
        expected: number of frames when the file was probed.

    Raises:
        BadVideo: 'truncated' if it has fewer now.
    """
    stream.thread_type = "NONE"  # clips are decoded side by side
    coded = number = 0
    for packet in container.demux(stream):
        if packet.size:
            coded += _shown(stream.codec_context.name, packet)[0]
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            yield number, frame
            number += 1
    if coded < expected:
        raise BadVideo("truncated")


def frames_needed(
    container: av.container.InputContainer, stream: av.VideoStream, expected: int, wanted: np.ndarray
) -> Frames:
    """Yields the wanted frames, and the frames that must be decoded before them, in order.

    Args:
        container: at its beginning.
        stream: of it.
        expected: as in `all_frames`.
        wanted: int (K,), sorted; numbers behind the last frame are ignored.

    Raises:
        BadVideo: as `all_frames`.
    """
    codec = stream.codec_context.name
    in_order = codec in _IN_ORDER
    if not in_order and container.format.name.split(",")[0] not in _TIMED:
        yield from all_frames(container, stream, expected)
        return
    stream.thread_type = "NONE"
    packets: list[av.Packet] = []
    keys: list[bool] = []
    shown: list[int] = []
    stamps: list[int | None] = []
    size = 0
    for packet in container.demux(stream):
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
    if sum(shown) < expected:
        raise BadVideo("truncated")
    known: dict[int, int] = {}
    if in_order:
        packet_of = np.repeat(np.arange(len(keys)), shown)
        first = np.cumsum([0, *shown[:-1]])
    else:
        known = _numbers(stamps)
        if len(known) < len(keys):  # times are missing or doubled: only counting tells which frame is which
            container.seek(0)
            yield from all_frames(container, stream, expected)
            return
        first = np.array([known[stamp] for stamp in stamps if stamp is not None])
        packet_of = np.argsort(first)
    needed = packets_needed(np.array(keys, bool), first, packet_of, wanted)
    context = stream.codec_context
    before = -1  # the packet decoded last

    def decoded(packet: av.Packet | None) -> Frames:
        for place, frame in enumerate(context.decode(packet)):
            if in_order:
                yield int(first[before]) + place, frame
            elif frame.pts in known:
                yield known[frame.pts], frame

    if not packets:
        container.seek(0)
    for at, packet in enumerate(packets or (p for p in container.demux(stream) if p.size)):
        if not needed[at]:
            continue
        if at != before + 1 and before >= 0:
            yield from decoded(None)
            context.flush_buffers()
        before = at
        yield from decoded(packet)
    if before >= 0:
        yield from decoded(None)


def _shown(codec: str, packet: av.Packet) -> tuple[int, bool]:
    """How many frames a packet gives, and whether decoding can begin at it."""
    if codec not in WITH_HEADERS:
        return 1, packet.is_keyframe
    pictures = read_pictures(codec, memoryview(packet))
    return sum(picture.shown for picture in pictures), pictures[0].key


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
