"""Which pictures a VP8 or VP9 packet holds, read from its headers. A packet is not a frame.

Both codecs have hidden pictures (alternate reference frames): they are decoded, other pictures refer to them, and nobody
sees them. VP9 packs a hidden picture and the next shown one into one packet, a superframe; VP8 gives it a packet of its
own. VP9 can also show a picture again that was decoded before.

    packets      [ A ] [ hidden | B ] [ C ] [ show hidden ]
    decoded        0       1      2     3
    shown          0              1     2         3

Sources: VP9 bitstream specification 0.6, sections 6.2 and annex B; RFC 6386, section 9.1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ssv2rt.video.bits import Bits, Buffer

logger = logging.getLogger(__name__)


CODECS = frozenset({"vp8", "vp9"})
"""Codecs whose packets are read here, by FFmpeg's names."""


class Picture(NamedTuple):
    """One coded picture of a packet."""

    start: int
    """Offset of its first byte in the packet."""
    end: int
    """Offset behind its last byte."""
    shown: bool
    """Whether a decoder gives a frame for it."""
    key: bool = False
    """Whether decoding can begin at it."""
    decoded: bool = True
    """False where nothing is decoded, and a picture that was decoded before is shown (VP9's show_existing_frame)."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, where the header names them."""
    color_space: int | None = None
    """VP9's number of the color space, where the header names it."""
    full_range: bool = False
    """Whether the header says that black is 0 and white is 255."""


def read_pictures(codec: str, packet: Buffer) -> Sequence[Picture]:
    """The pictures of a packet in the order of decoding.

    What is no valid header is one shown picture: its decoder will say what is wrong with it.

    Args:
        codec: 'vp8' or 'vp9'.
        packet: its bytes.
    """
    if codec == "vp8":
        return (_vp8(packet),)
    return [_vp9(packet, start, end) for start, end in split_superframe(packet)]


def frames_and_key(codec: str, packet: Buffer) -> tuple[int, bool]:
    """How many frames a packet shows, and whether decoding can begin at it.

    Args:
        codec: 'vp8' or 'vp9'.
        packet: at least one byte.
    """
    # The first byte of a picture tells it. This is called for every packet of a data set.
    if codec == "vp8":
        return (packet[0] >> 4 & 1, not packet[0] & 1) if len(packet) >= _VP8_HEADER_BYTES else (1, False)
    if packet[-1] & 0xE0 != 0xC0:
        return _VP9_FIRST_BYTES[packet[0]]
    starts = [start for start, _ in split_superframe(packet)]
    return sum(_VP9_FIRST_BYTES[packet[start]][0] for start in starts), _VP9_FIRST_BYTES[packet[starts[0]]][1]


def _by_first_byte(first: int) -> tuple[int, bool]:
    """`frames_and_key` of a VP9 picture that begins with this byte."""
    marker, profile = first >> 6, first >> 4 & 3
    if profile == 3:
        first <<= 1  # its header has one bit more before the others
    shown_again, inter, shown = first & 8, first & 4, first >> 1 & 1
    return (1, False) if marker != 2 or shown_again else (shown, not inter)


_VP9_FIRST_BYTES = [_by_first_byte(first) for first in range(256)]
_VP8_HEADER_BYTES = 3


def split_superframe(packet: Buffer) -> Sequence[tuple[int, int]]:
    """Where the frames of a VP9 packet begin and end: one, or those that a superframe's index names.

    Args:
        packet: its bytes.

    Returns:
        (start, end) of each.
    """
    whole = ((0, len(packet)),)
    marker = packet[-1] if len(packet) else 0
    if marker & 0xE0 != 0xC0:
        return whole
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(packet) - 2 - count * width
    if index < 0 or packet[index] != marker:
        return whole
    frames, start = [], 0
    for at in range(index + 1, len(packet) - 1, width):
        end = start + int.from_bytes(packet[at : at + width], "little")
        if end > index:
            return whole
        if end > start:
            frames.append((start, end))
        start = end
    return frames or whole


def _vp8(packet: Buffer) -> Picture:
    end = len(packet)
    if end < _VP8_HEADER_BYTES:
        return Picture(0, end, True)
    key, shown = not packet[0] & 1, bool(packet[0] & 16)
    size = None
    if key and end >= 10:
        width, height = (int.from_bytes(packet[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        size = width, height
    return Picture(0, end, shown, key, size=size)


def _vp9(packet: Buffer, start: int, end: int) -> Picture:
    first = packet[start]
    # Most pictures are shown and have the size of their first reference, which is told by a bit of the first four bytes.
    usual = first & 0b1100_1110 == 0b1000_0110 and first & 0b0011_0000 != 0b0011_0000 and end - start > 4
    if usual and packet[start + 3] >> (3 if first & 1 else 1) & 1:
        return Picture(start, end, True)
    bits = Bits(packet[start : min(end, start + 24)])
    if bits.take(2) != 2:
        return Picture(start, end, True)
    profile = bits.take(1) | bits.take(1) << 1
    if profile == 3:
        bits.take(1)
    if bits.take(1):
        return Picture(start, end, True, decoded=False)
    key, shown, resilient = not bits.take(1), bool(bits.take(1)), bool(bits.take(1))
    color_space, full_range, size = None, False, None
    if key:
        bits.take(24)
        color_space, full_range = _colors(bits, profile)
        size = _size(bits)
    elif not shown and bits.take(1):  # intra only
        bits.take(0 if resilient else 2)
        bits.take(24)
        if profile:
            color_space, full_range = _colors(bits, profile)
        bits.take(8)
        size = _size(bits)
    else:
        bits.take((0 if resilient else 2) + 8 + 3 * 4)
        if not any(bits.take(1) for _ in range(3)):  # no reference has its size
            size = _size(bits)
    return Picture(start, end, shown, key, size=size, color_space=color_space, full_range=full_range)


def _colors(bits: Bits, profile: int) -> tuple[int, bool]:
    """Reads VP9's color_config: the color space, and whether colors have the full range."""
    bits.take(profile >= 2)  # 10 or 12 bits
    space, rgb = bits.take(3), 7
    full = space == rgb or bits.flag()
    bits.take((profile & 1) * (3 if space != rgb else 1))  # subsampling
    return space, full


def _size(bits: Bits) -> tuple[int, int]:
    return bits.take(16) + 1, bits.take(16) + 1
