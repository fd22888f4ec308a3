"""Which packets must be decoded for which frames.

A frame's number is its place in display order. It depends on the packets from the key frame before it to its own:

    packets     K . . . . K . . . . K . . .
    wanted            ^             ^
    decoded     K . . .             K          the rest is read and left alone
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np

from ssv2rt.dataset.video import BadVideo

_IN_ORDER = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs whose packets are frames in display order, so that nothing has to be known of their times."""
_TIMED = frozenset({"matroska", "mov"})
"""Containers in which each packet tells when it is shown."""
_HELD = 64 << 20
"""Bytes of packets that are kept from the first reading of a file; of larger files, they are read again."""

Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames with their numbers, from 0."""


def frames_to(container: av.container.InputContainer, stream: av.VideoStream, expected: int) -> Frames:
    """All frames, in order.

    Args:
        container: at its beginning.
        stream: of it.
        expected: how many packets there were when the file was probed.

    Raises:
        BadVideo: 'truncated': it has fewer now.
    """
    stream.thread_type = "NONE"  # clips are decoded side by side
    packets = number = 0
    for packet in container.demux(stream):
        packets += bool(packet.size)
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            yield number, frame
            number += 1
    if packets < expected:
        raise BadVideo("truncated")


def frames_needed(
    container: av.container.InputContainer, stream: av.VideoStream, expected: int, wanted: np.ndarray
) -> Frames:
    """The wanted frames, and those on the way to them, in order.

    Args:
        container: at its beginning.
        stream: of it.
        expected: as in `frames_to`.
        wanted: int (K,), never falling; numbers beyond the last frame are let be.

    Raises:
        BadVideo: as `frames_to`.
    """
    in_order = stream.codec_context.name in _IN_ORDER
    if not in_order and container.format.name.split(",")[0] not in _TIMED:
        yield from frames_to(container, stream, expected)
        return
    stream.thread_type = "NONE"
    packets: list[av.Packet] = []
    keys: list[bool] = []
    stamps: list[int | None] = []
    size = 0
    for packet in container.demux(stream):
        if packet.size:
            keys.append(packet.is_keyframe)
            stamps.append(None if packet.is_discard else packet.pts)
            size += packet.size
            if size > _HELD:
                packets.clear()
            else:
                packets.append(packet)
    if len(keys) < expected:
        raise BadVideo("truncated")
    if in_order:
        number = np.arange(len(keys))
        known = {}
    else:
        known = _numbers(stamps)
        if len(known) < len(keys):  # times are missing or doubled: only counting tells which frame is which
            container.seek(0)
            yield from frames_to(container, stream, expected)
            return
        number = np.array([known[stamp] for stamp in stamps if stamp is not None])
    needed = _needed(np.array(keys, bool), number, wanted)
    context = stream.codec_context
    before = -1  # the packet decoded last

    def decoded(packet: av.Packet | None) -> Frames:
        for frame in context.decode(packet):
            if in_order:
                yield before, frame
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


def _numbers(stamps: list[int | None]) -> dict[int, int]:
    """Number in display order of each time, as far as times are known and differ."""
    return {stamp: number for number, stamp in enumerate(sorted({s for s in stamps if s is not None}))}


def _needed(keys: np.ndarray, number: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which packets have to be decoded.

    Args:
        keys: bool (P,): in the order of decoding, at which packets decoding can begin.
        number: int (P,): which frame each packet shows.
        wanted: int (K,)

    Returns:
        bool (P,)
    """
    needed = np.zeros(len(keys), bool)
    packet_of = np.argsort(number)
    starts = np.flatnonzero(keys)
    starts = starts[np.argsort(number[starts])]
    for frame in np.unique(wanted[wanted < len(keys)]):
        at = np.searchsorted(number[starts], frame, side="right") - 1
        needed[starts[at] if at >= 0 else 0 : packet_of[frame] + 1] = True
    return needed
