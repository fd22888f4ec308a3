"""Splits H.264 and HEVC packets into their network abstraction layer (NAL) units.

Source: ITU-T H.264 and H.265, annex B; ISO/IEC 14496-15, section 5.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from ssv2rt.video.bits import Buffer

_START = re.compile(rb"\x00\x00\x01")


def units(stream: Buffer) -> Iterator[bytes]:
    """The NAL units of an Annex B stream, without start codes and the zeros behind them."""
    starts = [match.end() for match in _START.finditer(stream)]
    for start, following in pairwise([*starts, len(stream) + 3]):
        if unit := bytes(stream[start : following - 3]).rstrip(b"\x00"):
            yield unit


def packet_units(packet: Buffer, length_bytes: int) -> Iterator[Buffer]:
    """The NAL units of a packet.

    Args:
        packet: its bytes.
        length_bytes: how many bytes in front of each unit tell its length; 0 for a packet with start codes.
    """
    if not length_bytes:
        yield from units(packet)
        return
    at, end = 0, len(packet)
    while at + length_bytes < end:
        start = at + length_bytes
        at = start + int.from_bytes(packet[at:start], "big")
        if at > start:
            yield packet[start:at]
