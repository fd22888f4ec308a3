"""Counts the frames of MPEG-1, MPEG-2 and MPEG-4 part 2 (DivX, Xvid) packets from the headers of their pictures.

Sources: ISO/IEC 11172-2, section 2.4.2; ISO/IEC 13818-2, section 6.2; ISO/IEC 14496-2, section 6.2.5.
"""

from __future__ import annotations

import re

from ssv2rt.video.bits import Bits, Buffer

_START = re.compile(rb"\x00\x00\x01")
_PICTURE = re.compile(rb"\x00\x00\x01\x00")
_GROUP = re.compile(rb"\x00\x00\x01\xb8")
_CODING_EXTENSION = re.compile(rb"\x00\x00\x01\xb5[\x80-\x8f]")
_PLANE = re.compile(rb"\x00\x00\x01\xb6")
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_INTRA, _PREDICTED, _BIDIRECTIONAL = 1, 2, 3
_FRAME = 3
"""MPEG-2's `picture_structure` of a whole frame; 1 and 2 are fields."""
_B_PLANE = 2
"""MPEG-4's `vop_coding_type` of a B picture; that of an I picture is 0."""
_NOT_CODED_BYTES = 9
"""A VOP that is not coded has a header alone, and is shorter."""


class Mpeg12Reader:
    """Reads how many frames the packets of an MPEG-1 or MPEG-2 stream show."""

    blank = False

    def __init__(self, extradata: bytes) -> None:
        self._references = 0
        self._closed = False

    def read(self, packet: Buffer) -> int | None:
        """The number of frames that a packet shows; None if its headers do not tell.

        They do not of fields, nor of B pictures that refer to a picture before the first one. A packet of noise counts as
        the frame that it was.
        """
        if group := _GROUP.search(packet):
            self._closed = len(packet) > group.end() + 3 and bool(packet[group.end() + 3] >> 6 & 1)
        shown = 0
        for picture in _PICTURE.finditer(packet):
            header = packet[picture.end() : picture.end() + 2]
            kind = header[1] >> 3 & 7 if len(header) == 2 else 0
            extension = _CODING_EXTENSION.search(packet, picture.end())
            structure = packet[extension.end() + 1] & 3 if extension and len(packet) > extension.end() + 1 else _FRAME
            if structure != _FRAME or kind not in (_INTRA, _PREDICTED, _BIDIRECTIONAL):
                return None
            if kind == _BIDIRECTIONAL:
                if self._references < 1 or (self._references < 2 and not self._closed):
                    return None
            elif self._references < 2:
                if not self._references and kind != _INTRA:
                    return None
                self._references += 1
            shown += 1
        return shown or int(not _START.search(packet))


class Mpeg4Reader:
    """Reads how many frames the packets of an MPEG-4 part 2 stream show."""

    blank = False

    def __init__(self, extradata: bytes) -> None:
        self._references = 0
        self._tells_delay = _tells_delay(extradata) or False

    def read(self, packet: Buffer) -> int | None:
        """The number of frames that a packet shows; None if its headers do not tell.

        They do not of two pictures in one packet ("packed B frames"), nor of a picture so small that it may not be coded,
        nor of B pictures that refer to a picture before the first one. Nor do they of a B picture in a stream whose header
        does not say whether there are any: FFmpeg has shown the picture after it by then, and shows it again.
        """
        planes = list(_PLANE.finditer(packet))
        if len(planes) != 1 or len(packet) - planes[0].end() < _NOT_CODED_BYTES:
            return None
        told = _tells_delay(packet)
        self._tells_delay = self._tells_delay if told is None else told
        kind = packet[planes[0].end()] >> 6
        if kind == _B_PLANE:
            return 1 if self._references > 1 and self._tells_delay else None
        if not self._references and kind:
            return None
        self._references += 1
        return 1


def _tells_delay(data: Buffer) -> bool | None:
    """Whether the header of a video object layer says whether there are B pictures; None if there is no such header."""
    if not (layer := _LAYER.search(data)):
        return None
    bits = Bits(data[layer.end() : layer.end() + 8])
    bits.take(9)  # random access, type
    if bits.flag():
        bits.take(7)  # version, priority
    if bits.take(4) == 15:
        bits.take(16)  # aspect ratio
    return bits.flag()
