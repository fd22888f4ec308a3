"""What H.264 says of its pictures: the units of an Annex B stream, and the sequence parameters.

Source: ITU-T H.264, sections 7.3 and 7.4, and annex B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ssv2rt.video.bits import Bits

SLICE, IDR, PARAMETERS = frozenset({1, 2, 5}), 5, 7
"""Types of units: slices of a picture (2 is the first part of one), those of a picture that nothing before it is needed for,
nor by anything after it, and the sequence parameter set."""

_START = re.compile(rb"\x00\x00\x01")
_WITH_CHROMA = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Profiles whose parameters name the chroma format."""


class SequenceParameters(NamedTuple):
    """What a sequence parameter set says of the pictures that follow it."""

    size: tuple[int, int]
    """Width and height as coded, in pixels."""
    frames_only: bool
    """Whether every picture is a whole frame, and none a field."""
    cropped: bool
    """Whether less is shown than is coded."""
    frame_number_bits: int
    """Length of `frame_num` in a slice's header."""
    separate_planes: bool
    """Whether slices name a color plane."""


def units(stream: bytes) -> Iterator[bytes]:
    """The NAL units of an Annex B stream, without start codes."""
    starts = [match.end() for match in _START.finditer(stream)]
    for start, following in zip(starts, [*starts[1:], len(stream) + 3], strict=True):
        if unit := stream[start : following - 3].rstrip(b"\x00"):
            yield unit


def kind_of(unit: bytes) -> int:
    """Type of a NAL unit."""
    return unit[0] & 31


def begins_picture(unit: bytes) -> bool:
    """Whether a NAL unit is the first slice of a picture, or of a field."""
    return kind_of(unit) in SLICE and len(unit) > 1 and bool(unit[1] & 0x80)  # first_mb_in_slice is 0


def read_sequence(unit: bytes) -> SequenceParameters:
    """Reads a sequence parameter set.

    Args:
        unit: the NAL unit, of type 7. Of a damaged one the result means nothing.
    """
    bits = Bits(_payload(unit[1:]))
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.unsigned()
    separate = False
    if profile in _WITH_CHROMA:
        chroma = bits.unsigned()
        separate = chroma == 3 and bits.flag()
        bits.unsigned()
        bits.unsigned()
        bits.take(1)
        if bits.flag():
            for number in range(12 if chroma == 3 else 8):
                if bits.flag():
                    _skip_scaling(bits, 16 if number < 6 else 64)
    frame_number_bits = bits.unsigned() + 4
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.take(1)
        bits.signed()
        bits.signed()
        for _ in range(min(255, bits.unsigned())):
            bits.signed()
    bits.unsigned()
    bits.take(1)
    width, height = 16 * (bits.unsigned() + 1), 16 * (bits.unsigned() + 1)
    frames_only = bits.flag()
    bits.take(1 if frames_only else 2)
    size = width, height if frames_only else 2 * height
    return SequenceParameters(size, frames_only, bits.flag(), frame_number_bits, separate)


def _payload(data: bytes) -> bytes:
    """Without the bytes that keep start codes out of it."""
    return data.replace(b"\x00\x00\x03", b"\x00\x00")


def _skip_scaling(bits: Bits, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
