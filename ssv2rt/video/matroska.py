"""The pictures of a Matroska file with MJPEG, found without FFmpeg's demuxer.

In such a file, as `ssv2rt repack` writes them, each picture stands alone. So a clip needs only the bytes of its own pictures,
while FFmpeg would read and copy those of all. Whatever is unusual about a file is left to FFmpeg: lacing, several tracks,
encryption, rotation, unknown sizes, damage.

Source: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator

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


def read_header(data: bytes, at: int = 0) -> tuple[int, int, int | None] | None:
    """The EBML element that begins at an offset.

    Returns:
        Its kind, where its content starts, and the content's length, None if unknown; None if there is no header.
    """
    if at + 2 > len(data) or not data[at]:
        return None
    middle = at + 9 - data[at].bit_length()  # where the length is
    if middle >= len(data) or not data[middle]:
        return None
    bits = 7 * (9 - data[middle].bit_length())
    start, unknown = middle + bits // 7, (1 << bits) - 1
    size = int.from_bytes(data[middle:start], "big") & unknown
    return int.from_bytes(data[at:middle], "big"), start, None if size == unknown else size


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
        segment = next((at for kind, *at in _elements(data, 0, len(data)) if kind == SEGMENT), None)
        if segment is None:
            return None
        number: int | None = None
        pictures: list[memoryview] = []
        for kind, start, end in _elements(data, *segment):
            if kind == TRACKS:
                number = _track_number(data, start, end)
            elif kind == CLUSTER:
                if number is None:
                    return None
                pictures += (view[at:until] for at, until in _blocks(data, start, end, number))
        return pictures
    except (_Unusual, IndexError):
        return None


def _track_number(data: bytes, start: int, end: int) -> int:
    """The number of the only track, which has MJPEG."""
    tracks = [(at, until) for kind, at, until in _elements(data, start, end) if kind == _TRACK]
    if len(tracks) != 1:
        raise _Unusual
    facts = {kind: data[at:until] for kind, at, until in _elements(data, *tracks[0])}
    if facts.get(_CODEC) != _MJPEG or _ENCODINGS in facts or _NUMBER not in facts:
        raise _Unusual
    video = facts.get(_VIDEO, b"")
    if any(element == _PROJECTION for element, *_ in _elements(video, 0, len(video))):
        raise _Unusual
    return int.from_bytes(facts[_NUMBER], "big")


def _blocks(data: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Start and end of the content of each block of a track that has any."""
    for kind, at, until in _elements(data, start, end):
        if kind == GROUP:
            yield from _blocks(data, at, until, number)
        elif kind in (SIMPLE_BLOCK, BLOCK):
            # The number of the track in one byte, two bytes of time, and flags.
            if data[at] != number | 0x80 or data[at + 3] & _LACING:
                raise _Unusual
            if until > at + 4:
                yield at + 4, until


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the content of each element in a range. Raises _Unusual where one does not fit."""
    while at < end:
        if (header := read_header(data, at)) is None:
            raise _Unusual
        kind, start, size = header
        if size is None or start + size > end:
            raise _Unusual  # of unknown size, or cut off
        at = start + size
        yield kind, start, at
