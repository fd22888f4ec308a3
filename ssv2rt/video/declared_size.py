"""Whether a file ends before what it declares: its boxes, elements, chunks, tags or pages reach behind its last byte.

Only the structure of the container is read, so all streams count, and nothing else does: not a pause, not a long last frame.

    declares its size                                        declares none: a cut is not to be seen
    MP4, MOV, 3GP, Matroska, WebM, AVI, ASF, WMV, FLV,       MPEG-TS, MPEG-PS, raw streams (.264, .m4v, .obu, .mjpeg),
    IVF, Ogg, MXF                                            GIF, Y4M, a live WebM between two clusters

Sources: ISO/IEC 14496-12, section 4.2; RFC 8794, section 6 (EBML); OpenDML AVI 1.02; Advanced Systems Format 01.20,
section 3.2; Adobe Flash Video 10.1, annex E; RFC 3533 (Ogg); SMPTE ST 336 (MXF).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import IO

from ssv2rt.video.matroska import BLOCK, CLUSTER, EBML, GROUP, HEADER, SEGMENT, SIMPLE_BLOCK, TRACKS, read_header
from ssv2rt.video.storage import VideoSource, open_bytes

_TOP_ELEMENTS = frozenset({SEGMENT, CLUSTER, TRACKS, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1254C367})
"""Segments, clusters, tracks, indexes, information, cues and tags."""
_FIRST_BOXES = frozenset(b"ftyp moov mdat moof styp sidx free skip wide pnot uuid".split())
_MEDIA_BOXES = frozenset(b"ftyp moov mdat moof".split())
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MXF = b"\x06\x0e\x2b\x34"


def ends_early(source: VideoSource) -> bool:
    """Whether a video file is shorter than its own container declares; False where the container declares nothing.

    Raises:
        OSError: it cannot be read.
    """
    with open_bytes(source) as file:
        head = file.read(16)
        size = file.seek(0, os.SEEK_END)
        for begins, check in _CHECKS:
            if begins(head):
                return check(_Reader(file, size))
    return False


def has_blocks_behind(source: VideoSource, offset: int) -> bool:
    """Whether a Matroska or WebM file has more of a track behind a packet. FFmpeg may stop at damage without an error.

    Args:
        source: the file.
        offset: of the last packet of the track that could be read.

    Raises:
        OSError: it cannot be read.
    """
    with open_bytes(source) as file:
        reader = _Reader(file, file.seek(0, os.SEEK_END))
        ends = [reader.size]  # of the elements that contain the next one
        at, track = 0, b""
        while at < reader.size:
            while at >= ends[-1]:
                ends.pop()
            element = _element(reader, at)
            if element is None:
                return bool(track) and len(ends) > 1
            kind, at, length = element
            if length is None:
                length = ends[-1] - at
            if at + length > ends[-1]:
                return bool(track) and len(ends) > 1  # what is behind the segment was appended
            if kind == CLUSTER:
                del ends[2:]  # one of unknown length ends where the next begins
            if kind in (SEGMENT, CLUSTER, GROUP):
                ends.append(at + length)
                continue
            if kind in (SIMPLE_BLOCK, BLOCK):
                if track and reader.at(at, 1) == track:
                    return True
                if at <= offset < at + length:
                    track = reader.at(at, 1)
            at += length
    return False


class _Reader:
    """A file that is read here and there.

    Args:
        file: it.
        size: its length in bytes.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size = file, size

    def at(self, offset: int, count: int) -> bytes:
        """The bytes at an offset; fewer behind the end."""
        self._file.seek(offset)
        return self._file.read(count)


def _mp4(file: _Reader) -> bool:
    at, described = 0, False
    while len(head := file.at(at, 16)) >= 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        described |= kind in (b"moov", b"moof")
        if length < 8:
            break  # 0: to the end of the file; else something that was appended
        if at + length > file.size and kind in _MEDIA_BOXES:
            return True
        at += length
    if 4 < len(head) < 8 and any(kind.startswith(head[4:]) for kind in _MEDIA_BOXES):
        return True
    return not described  # nothing can be decoded without a moov


def _matroska(file: _Reader) -> bool:
    at, end = 0, file.size
    while at < end and (element := _element(file, at)):
        kind, start, length = element
        if kind == SEGMENT and length is None:
            at = start  # a live file: look at its clusters
            continue
        if length is None:
            return False
        if start + length > end:
            return kind in _TOP_ELEMENTS
        if kind == SEGMENT:
            return False
        at = start + length
    return False


def _element(file: _Reader, at: int) -> tuple[int, int, int | None] | None:
    """The EBML element at an offset: its kind, where its content starts, and the content's length, None if unknown."""
    header = read_header(file.at(at, HEADER))
    return header and (header[0], at + header[1], header[2])


def _avi(file: _Reader) -> bool:
    at = 0
    while len(head := file.at(at, 8)) == 8 and head[:4] == b"RIFF":  # OpenDML has one after another
        length = int.from_bytes(head[4:], "little")
        if length in (0, 0xFFFFFFFF):
            return False  # written to a pipe
        if at + 8 + length > file.size:
            return True
        at += 8 + length + length % 2
    return False


def _asf(file: _Reader) -> bool:
    head = file.at(0, 1 << 16)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return at < 0 and file.size < int.from_bytes(head[16:24], "little")
    (declared,), (flags,) = struct.unpack_from("<Q", head, at + 40), struct.unpack_from("<I", head, at + 88)
    return not flags & 1 and declared > file.size  # of a broadcast nothing is known


def _flv(file: _Reader) -> bool:
    at = int.from_bytes(file.at(5, 4), "big") + 4
    while (head := file.at(at, 11)) and head[0] & 0xDF in (8, 9, 18) and not any(head[8:]):  # stream 0
        at += 11 + int.from_bytes(head[1:4], "big") + 4
    return at - 4 > file.size  # some writers leave out the last size of a tag


def _ivf(file: _Reader) -> bool:
    head = file.at(0, 32)
    at, frames, before, last = int.from_bytes(head[6:8], "little"), 0, 0, 0
    while len(frame := file.at(at, 12)) == 12:
        length, time = struct.unpack("<IQ", frame)
        if at + 12 + length > file.size:
            break
        at, frames = at + 12 + length, frames + 1
        if time > last:
            before, last = last, time
    # Writers declare the number of frames, or when the last one ends. Then what follows the last one was appended.
    declared = int.from_bytes(head[24:28], "little")
    if declared in (0, 0xFFFFFFFF):
        return at != file.size  # written to a pipe
    left_out = 2 if at == file.size else 1  # steps of time
    return frames < declared and last + left_out * max(1, last - before) < declared


def _ogg(file: _Reader) -> bool:
    at = 0
    while len(head := file.at(at, 27)) == 27 and head[:4] == b"OggS":
        segments = file.at(at + 27, head[26])
        at += 27 + head[26] + sum(segments)
    return at > file.size or (0 < len(head) < 27 and b"OggS".startswith(head[:4]))


def _mxf(file: _Reader) -> bool:
    at = 0
    while len(head := file.at(at, 25)) > 16 and head[:4] == _MXF:
        bytes_of_length = head[16] & 127 if head[16] & 128 else 0
        length = int.from_bytes(head[17 : 17 + bytes_of_length], "big") if bytes_of_length else head[16]
        at += 17 + bytes_of_length + length
    return at > file.size or (0 < len(head) < 17 and _MXF.startswith(head[:4]))


_CHECKS: tuple[tuple[Callable[[bytes], bool], Callable[[_Reader], bool]], ...] = (
    (lambda head: head[:4] == EBML, _matroska),
    (lambda head: head[4:8] in _FIRST_BOXES, _mp4),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _avi),
    (lambda head: head == _ASF_HEADER, _asf),
    (lambda head: head[:3] == b"FLV", _flv),
    (lambda head: head[:4] == b"DKIF", _ivf),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[:4] == _MXF, _mxf),
)
