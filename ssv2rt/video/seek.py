"""Which packets must be decoded for which frames.

A frame's number is its place in display order. It depends on the packets from the key frame before it to its own:

    packets     K . . . . K . . . . K . . .
    wanted            ^             ^
    decoded     K . . .             K          the rest is read and left alone

Letters: P packets, F frames, K wanted frames.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import av
import av.error
import numpy as np

from ssv2rt.video.container import BadVideo, open_video, read_packets, video_stream
from ssv2rt.video.crops import CropBox
from ssv2rt.video.frame_counter import PacketTable
from ssv2rt.video.jpeg_tiles import tiles_of
from ssv2rt.video.matroska import has_mjpeg, mjpeg_pictures
from ssv2rt.video.storage import VideoSource, open_bytes

TIMED = frozenset({"matroska", "mov"})
"""Containers that give every packet a presentation time."""
_HEAD = 4096
"""Bytes at the begin of a file that tell whether it is Matroska with MJPEG, as `ssv2rt repack` writes it."""
_STACKED = 1 << 19
"""Pixels of the pictures whose tiles are decoded together, about."""
_HELD = 64 << 20
"""Bytes of packets that are kept from the first pass over a file. Larger files are read again."""

Frames = Iterator[tuple[int, av.VideoFrame]]
"""Frames with their numbers, from 0."""
Region = Callable[[int, int], CropBox]
"""Which part is wanted of frames with a width and a height, in pixels as coded."""


class Part(NamedTuple):
    """A decoded frame; or parts of several, of equal height, one below the other."""

    numbers: Sequence[int]
    """Of the frames, rising."""
    frame: av.VideoFrame
    within: CropBox
    """Left and top of each part in its whole frame, and width and height of the whole frame, in pixels."""


def whole(number: int, frame: av.VideoFrame) -> Part:
    """A frame that is whole."""
    return Part((number,), frame, CropBox(0, 0, frame.width, frame.height))


def all_frames(source: VideoSource, expected: int = 0) -> Frames:
    """Yields all frames, in order.

    Args:
        source: the video.
        expected: number of frames when the file was probed.

    Raises:
        BadVideo: it cannot be opened; 'truncated' if its packets show fewer frames now.
        av.error.FFmpegError: a packet behind the first frame cannot be decoded. Those before it may refer to pictures
            that were cut off.
    """
    number = 0
    with open_video(source) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"  # clips are decoded side by side
        table = PacketTable(stream)
        for packet in chain(read_packets(container, stream), (None,)):
            if packet is not None:
                table.add(packet)
                if table.blank:
                    continue
            try:
                for frame in stream.codec_context.decode(packet):
                    yield number, frame
                    number += 1
            except av.error.InvalidDataError:
                if number:
                    raise
    if table.certain and sum(table.shown) < expected:
        raise BadVideo("truncated")


def parts_needed(
    source: VideoSource, expected: int, wanted: np.ndarray, region: Region | None = None
) -> Iterator[Part]:
    """Yields the wanted frames, and the frames that must be decoded before them, in order.

    Args:
        source: the video.
        expected: as in `all_frames`.
        wanted: int (K,), sorted; numbers behind the last frame are ignored.
        region: what of the frames is wanted. Of pictures that have tiles, the others are not decoded.

    Raises:
        BadVideo: see `frames_needed`.
    """
    pictures = _pictures_alone(source)
    if pictures is None or len(pictures) < expected:
        for number, frame in _frames_needed(source, expected, wanted):
            yield whole(number, frame)
        return
    context = av.CodecContext.create("mjpeg", "r")
    context.thread_type = "NONE"

    def decoded(picture: bytes) -> av.VideoFrame:
        frames = context.decode(av.Packet(picture))
        if len(frames) != 1:
            raise BadVideo("corrupt")
        return frames[0]

    numbers = np.unique(wanted[wanted < len(pictures)]).tolist()
    if not numbers:
        return
    tiles = tiles_of(pictures[numbers[0]]) if region else None
    crop = region(tiles.width, tiles.height) if region and tiles else None
    groups = -(-len(numbers) * crop.width * crop.height // _STACKED) if crop else len(numbers)
    step = -(-len(numbers) // groups)
    for at in range(0, len(numbers), step):
        group = numbers[at : at + step]
        stack = tiles.stack([pictures[number] for number in group], crop) if tiles and crop else None
        if tiles and stack:
            within = CropBox(stack.left, stack.top, tiles.width, tiles.height)
            yield Part(group, decoded(stack.content), within)
        else:
            for number in group:
                yield whole(number, decoded(pictures[number]))


def frames_needed(source: VideoSource, expected: int, wanted: np.ndarray) -> Frames:
    """Yields the wanted frames, and the frames that must be decoded before them, in order.

    Where packets have to be read twice, the file is opened anew: seeking to time 0 may not lead to the first packet.

    Args:
        source: the video.
        expected: as in `all_frames`.
        wanted: int (K,), sorted; numbers behind the last frame are ignored.

    Raises:
        BadVideo: as `all_frames`; 'corrupt' if decoding began at a picture that is no key frame, though its packet is
            flagged as one, or if frames do not come in the order of their times.
    """
    return ((part.numbers[0], part.frame) for part in parts_needed(source, expected, wanted))


def _frames_needed(source: VideoSource, expected: int, wanted: np.ndarray) -> Frames:
    with open_video(source) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"
        table = PacketTable(stream)
        countable = table.certain and (table.in_order or container.format.name.split(",")[0] in TIMED)
        packets: list[av.Packet] = []
        size = 0
        for packet in read_packets(container, stream) if countable else ():
            table.add(packet)
            size += packet.size
            if size > _HELD:
                packets.clear()
            else:
                packets.append(packet)
        if countable and table.certain:
            if sum(table.shown) < expected:
                raise BadVideo("truncated")
            if (order := _display_order(table)) is not None:
                first, packet_of, known = order
                needed = packets_needed(np.array(table.keys, bool), first, packet_of, wanted)
                if packets:
                    yield from _decoded(packets, stream.codec_context, needed, first, known)
                else:
                    with open_video(source) as again:
                        stream = video_stream(again)
                        stream.thread_type = "NONE"
                        packets_again = read_packets(again, stream)
                        yield from _decoded(packets_again, stream.codec_context, needed, first, known)
                return
    yield from all_frames(source, expected)


def _pictures_alone(source: VideoSource) -> list[memoryview] | None:
    """The pictures of a file that can be decoded each without the others; None if they are not simply to be found."""
    if not isinstance(source, bytes):
        with open_bytes(source) as file:
            head = file.read(_HEAD)
            if not has_mjpeg(head):
                return None
            file.seek(0)
            source = file.read(_HELD + 1)
    return mjpeg_pictures(source) if has_mjpeg(source[:_HEAD]) and len(source) <= _HELD else None


def _display_order(table: PacketTable) -> tuple[np.ndarray, np.ndarray, Mapping[int, int]] | None:
    """Which packet shows which frame, or None where only counting what is decoded tells it.

    Returns:
        `first` and `packet_of` of `packets_needed`, and the numbers of frames by their times; no times where frames come in
        the order of packets.
    """
    shown = np.array(table.shown)
    if table.in_order:
        return np.cumsum([0, *table.shown[:-1]]), np.repeat(np.arange(len(shown)), shown), {}
    stamps = np.array([stamp for stamp in table.stamps if stamp is not None], np.int64)
    # The other field of a frame, or a picture that is left out, is needed by a frame that another packet shows.
    if table.discarded or len(stamps) < len(shown) or len(np.unique(stamps)) < len(stamps) or np.any(shown != 1):
        return None
    packet_of = np.argsort(stamps)
    first = np.argsort(packet_of)
    return first, packet_of, dict(zip(stamps.tolist(), first.tolist(), strict=True))


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
    entry = -1  # number of the frame that decoding began at, behind packets that were skipped
    due: list[int] = []  # heap of the numbers of frames whose packets the decoder has

    def frames(packet: av.Packet | None) -> Frames:
        for place, frame in enumerate(context.decode(packet)):
            if not known:
                number = int(first[before]) + place
            elif frame.pts is not None and frame.pts in known:
                number = known[frame.pts]
                # Leading pictures refer to what is before the entry: the decoder may leave them out, and nobody wants them.
                while due and due[0] < min(number, entry):
                    heapq.heappop(due)
                if not due or heapq.heappop(due) != number:
                    raise BadVideo("corrupt")  # times and pictures do not belong together
            else:
                continue
            if number == entry and not frame.key_frame:
                raise BadVideo("corrupt")
            yield number, frame

    for at, packet in enumerate(packets):
        if not needed[at]:
            continue
        if at != before + 1:
            if before >= 0:
                yield from frames(None)
                context.flush_buffers()
                due.clear()
            entry = int(first[at])
        before = at
        if known:
            heapq.heappush(due, int(first[at]))
        yield from frames(packet)
    if before >= 0:
        yield from frames(None)


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
