"""Counts the frames of HEVC packets. Leading pictures whose references precede the first key frame (RASL) are not shown.

Source: ITU-T H.265, sections 7.3.1, 7.4.2.2 and 8.1.3.
"""

from __future__ import annotations

from ssv2rt.video.bits import Buffer
from ssv2rt.video.nal import packet_units

_RASL = frozenset({8, 9})
"""Leading pictures that refer to pictures before the random access point, and cannot be decoded after starting at it."""
_BLANK = frozenset(range(35, 41))
"""Messages, delimiters and filling."""
_SLICES = frozenset({*range(10), *range(16, 22)})
_PARAMETER_SETS = frozenset({32, 33, 34})
_RANDOM_ACCESS = range(16, 24)
_CLEAN_RANDOM_ACCESS = 21
_END = frozenset({36, 37})
"""End of the sequence, or of the stream."""


class HevcReader:
    """Reads how many frames the packets of a stream show.

    Args:
        extradata: of the stream: empty, an hvcC record, or units of Annex B.
    """

    def __init__(self, extradata: bytes) -> None:
        hvcc = extradata[:1] == b"\x01" and len(extradata) > 21
        self._length_bytes = (extradata[21] & 3) + 1 if hvcc else 0
        self._begun = False
        self._ended = True  # no picture since the beginning, or since the end of a sequence
        self._skips_leading = False
        self.blank = False
        """Whether the last packet has nothing but messages, delimiters and filling."""

    def read(self, packet: Buffer) -> int | None:
        """The number of frames that a packet shows; None if its headers do not tell, see `H264Reader.read`."""
        shown, kinds = 0, set()
        for unit in packet_units(packet, self._length_bytes):
            if len(unit) < 3 or (unit[0] & 1) << 5 | unit[1] >> 3:
                continue  # another layer than the base
            kind = unit[0] >> 1 & 63
            kinds.add(kind)
            if kind in _END:
                self._ended = True
            if kind >= 32 or not unit[2] & 0x80:
                continue  # no first slice of a picture
            if kind in _RANDOM_ACCESS:
                self._skips_leading = self._ended or kind < _CLEAN_RANDOM_ACCESS
                self._begun, self._ended = True, False
            if not self._begun:
                return None
            shown += not (kind in _RASL and self._skips_leading)
        self.blank = bool(kinds) and kinds <= _BLANK
        return shown if kinds & _SLICES or (kinds and kinds <= _BLANK | _PARAMETER_SETS) else 1
