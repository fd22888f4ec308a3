"""Reads H.264's sequence parameter sets, and counts the frames of packets, of which each may hold a frame or one field.

Source: ITU-T H.264, sections 7.3 and 7.4.
"""

from __future__ import annotations

from typing import NamedTuple

from ssv2rt.video.bits import Bits, Buffer
from ssv2rt.video.nal import packet_units, units

SLICE, IDR, PARAMETERS = frozenset({1, 2, 5}), 5, 7
"""Types of units: slices of a picture (2 is the first part of one), those of a picture that nothing before it is needed for,
nor by anything after it, and the sequence parameter set."""

_PARAMETER_SETS = frozenset({PARAMETERS, 8, 13, 15})
_BLANK = frozenset({6, 9, 10, 11, 12})
"""Messages, delimiters and filling."""
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


def kind_of(unit: Buffer) -> int:
    """Type of a NAL unit."""
    return unit[0] & 31


def begins_picture(unit: Buffer) -> bool:
    """Whether a NAL unit is the first slice of a picture, or of a field."""
    return kind_of(unit) in SLICE and len(unit) > 1 and bool(unit[1] & 0x80)  # first_mb_in_slice is 0


def read_sequence(unit: Buffer) -> SequenceParameters:
    """Reads a sequence parameter set.

    Args:
        unit: the NAL unit, of type 7. Of a damaged one the result means nothing.
    """
    bits = Bits(_payload(bytes(unit[1:])))
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


class Field(NamedTuple):
    """A picture that is one field of a frame."""

    frame_number: int
    """`frame_num`; both fields of a frame have the same."""
    bottom: bool


def read_field(unit: Buffer, sequence: SequenceParameters) -> Field | None:
    """The field that a slice belongs to; None if its picture is a whole frame.

    Args:
        unit: the NAL unit of a slice.
        sequence: the parameters that it refers to.
    """
    if sequence.frames_only:
        return None
    bits = Bits(_payload(bytes(unit[1:33])))
    for _ in range(3):  # first macroblock, slice type, picture parameter set
        bits.unsigned()
    bits.take(2 * sequence.separate_planes)
    number = bits.take(sequence.frame_number_bits)
    return Field(number, bits.flag()) if bits.flag() else None


class H264Reader:
    """Reads how many frames the packets of a stream show. The two fields of a frame may have a packet each.

    Args:
        extradata: of the stream: empty, an avcC record, or units of Annex B.
    """

    def __init__(self, extradata: bytes) -> None:
        avcc = extradata[:1] == b"\x01"
        self._length_bytes = (extradata[4] & 3) + 1 if avcc and len(extradata) > 4 else 0
        self._sequence: SequenceParameters | None = None
        self._begun = False
        self._first: Field | None = None  # a field that waits for the other one of its frame
        self.blank = False
        """Whether the last packet has nothing but messages, delimiters and filling."""
        if avcc:
            at = 6
            for _ in range(extradata[5] & 31 if len(extradata) > 5 else 0):
                size = int.from_bytes(extradata[at : at + 2], "big")
                self._take_parameters(extradata[at + 2 : at + 2 + size])
                at += 2 + size
        else:
            for unit in units(extradata):
                self._take_parameters(unit)

    def read(self, packet: Buffer) -> int | None:
        """The number of frames that a packet adds to those shown before; None if its headers do not tell.

        They do not where the stream begins in the middle of a group of pictures, for its decoder may leave pictures out.
        A packet of noise counts as the frame that it was.
        """
        shown, kinds = 0, set()
        for unit in packet_units(packet, self._length_bytes):
            kind = kind_of(unit)
            kinds.add(kind)
            if kind == PARAMETERS:
                self._take_parameters(unit)
            elif begins_picture(unit):
                if self._sequence is None or not (self._begun or kind == IDR):
                    return None
                self._begun = True
                shown += self._begins_frame(unit, self._sequence)
        self.blank = bool(kinds) and kinds <= _BLANK
        return shown if kinds & SLICE or (kinds and kinds <= _BLANK | _PARAMETER_SETS) else 1

    def _begins_frame(self, slice: Buffer, sequence: SequenceParameters) -> bool:
        field, first = read_field(slice, sequence), self._first
        second = field and first and field.frame_number == first.frame_number and field.bottom != first.bottom
        self._first = None if second else field
        return not second

    def _take_parameters(self, unit: Buffer) -> None:
        if len(unit) > 4 and kind_of(unit) == PARAMETERS:
            self._sequence = read_sequence(unit)
