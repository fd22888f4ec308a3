"""The pictures of a Matroska file with MJPEG, found without FFmpeg's demuxer.

In such a file, as `ssv2rt repack` writes them, each picture stands alone. So a clip needs only the bytes of its own pictures,
while FFmpeg would read and copy those of all. Whatever is unusual about a file is left to FFmpeg: lacing, several tracks,
encryption, rotation, unknown sizes, damage.

Source: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator

from ssv2rt.video.bits import Buffer

EBML = b"\x1a\x45\xdf\xa3"
"""How Matroska and WebM begin."""
SEGMENT, TRACKS, CLUSTER = 0x18538067, 0x1654AE6B, 0x1F43B675
SIMPLE_BLOCK, GROUP, BLOCK = 0xA3, 0xA0, 0xA1
HEADER = 12
"""Bytes of the longest header of an element."""
_TRACK, _NUMBER, _CODEC, _VIDEO, _ENCODINGS, _PROJECTION = 0xAE, 0xD7, 0x86, 0xE0, 0x6D80, 0x7670
_LACING = 0x06
_MJPEG = b"V_MJPEG"


class _Unusual(Exception):
    """Something that is left to FFmpeg."""


def read_header(head: Buffer) -> tuple[int, int, int | None] | None:
    """An EBML element's kind, and the bytes of its header and of its content, None if unknown; None if `head` is no header."""
    if len(head) < 2 or not head[0]:
        return None
    kind = 9 - head[0].bit_length()  # bytes
    if kind >= len(head) or not head[kind]:
        return None
    length = 9 - head[kind].bit_length()
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(head[kind : kind + length], "big") & unknown
    return int.from_bytes(head[:kind], "big"), kind + length, None if size == unknown else size


def has_mjpeg(head: bytes) -> bool:
    """Whether a file that begins so is probably Matroska with MJPEG."""
    return head.startswith(EBML) and _MJPEG in head


def mjpeg_pictures(data: bytes) -> list[memoryview] | None:
    """The pictures of a file, in order: JPEG files.

    Returns:
        None if this is not a plain Matroska file with one track of MJPEG.
    """
    view = memoryview(data)
    try:
        segment = next((at for kind, *at in _elements(view, 0, len(view)) if kind == SEGMENT), None)
        if segment is None:
            return None
        number: int | None = None
        pictures: list[memoryview] = []
        for kind, start, end in _elements(view, *segment):
            if kind == TRACKS:
                number = _track_number(view, start, end)
            elif kind == CLUSTER:
                if number is None:
                    return None
                pictures += _blocks(view, start, end, number)
        return pictures
    except (_Unusual, IndexError):
        return None


def _track_number(view: memoryview, start: int, end: int) -> int:
    """The number of the only track, which has MJPEG."""
    tracks = [(at, until) for kind, at, until in _elements(view, start, end) if kind == _TRACK]
    if len(tracks) != 1:
        raise _Unusual
    facts = {kind: bytes(view[at:until]) for kind, at, until in _elements(view, *tracks[0])}
    if facts.get(_CODEC) != _MJPEG or _ENCODINGS in facts or _NUMBER not in facts:
        raise _Unusual
    video = facts.get(_VIDEO, b"")
    if any(element == _PROJECTION for element, *_ in _elements(memoryview(video), 0, len(video))):
        raise _Unusual
    return int.from_bytes(facts[_NUMBER], "big")


def _blocks(view: memoryview, start: int, end: int, number: int) -> Iterator[memoryview]:
    for kind, at, until in _elements(view, start, end):
        if kind == GROUP:
            yield from _blocks(view, at, until, number)
        elif kind in (SIMPLE_BLOCK, BLOCK):
            # The number of the track in one byte, two bytes of time, and flags.
            if view[at] != number | 0x80 or view[at + 3] & _LACING:
                raise _Unusual
            if until > at + 4:
                yield view[at + 4 : until]


def _elements(view: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the content of each element in a range. Raises _Unusual where one does not fit."""
    while at < end:
        header = read_header(view[at : at + HEADER])
        if header is None or header[2] is None or at + header[1] + header[2] > end:
            raise _Unusual  # cut off, or of unknown size
        kind, start, size = header[0], at + header[1], header[2]
        yield kind, start, start + size
        at = start + size
