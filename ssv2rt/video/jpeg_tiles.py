"""Parts of JPEG pictures, so that a decoder has less to do.

The restart markers of a JPEG divide it into runs of as many blocks each, which are coded independently. Where a row of blocks
is divided evenly, the runs are tiles of the picture, and those that a crop touches make a JPEG of their own. With those of the
other frames of a clip below it, the decoder builds its tables once for all of them:

    tile tile TILE TILE tile        the same header with another width and height
    tile tile TILE TILE tile   ->   TILE TILE
    tile tile tile tile tile        TILE TILE
                                    TILE TILE   of the next picture
                                    TILE TILE

Source: ITU-T T.81, annex B (segments) and A.2 (order of blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssv2rt.video.bits import Buffer
from ssv2rt.video.crops import CropBox

START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE, INTERVAL, SCAN = 0xC0, 0xDD, 0xDA
_HARMLESS = frozenset({0xC4, 0xDB, 0xFE, *range(0xE0, 0xF0)}) - {0xE1}
"""Segments that hold for the whole picture and for its parts: tables, comments, and those of applications, except Exif, which
may turn the picture."""
RESTART = b"\xff\xd0"
"""The first of eight restart markers."""
LARGEST = 65500
"""Pixels along a side of a picture that FFmpeg takes."""


class Stack(NamedTuple):
    """The tiles of some pictures that a crop touches, one picture below the other.

    It is a JPEG but for the restart markers, which T.81 numbers one by one. FFmpeg does not look at their numbers.
    """

    content: bytes
    left: int
    """Where the tiles lie in each picture, in pixels."""
    top: int
    height: int
    """Pixels from one picture to the next."""


@dataclass(frozen=True)
class Tiles:
    """How pictures with the same header are divided into tiles."""

    header: bytes
    """What precedes the first tile."""
    width: int
    """Of the picture, in pixels."""
    height: int
    wide: int
    """Width of a tile in pixels. Tiles at the right edge and at the bottom may reach beyond the picture."""
    high: int

    def stack(self, pictures: Sequence[Buffer], crop: CropBox) -> Stack | None:
        """What a decoder needs to show the same crop of some pictures.

        Args:
            pictures: at least one JPEG.
            crop: in pixels of a picture.

        Returns:
            None if a picture has another header, or not as many tiles as the header says, or if they are too high together.
        """
        across, down = -(-self.width // self.wide), -(-self.height // self.high)
        left, right = crop.left // self.wide, min(across, -(-(crop.left + crop.width) // self.wide))
        top, bottom = crop.top // self.high, min(down, -(-(crop.top + crop.height) // self.high))
        # Tiles may reach beyond the picture, and are decoded whole.
        width, height, begin = (right - left) * self.wide, (bottom - top) * self.high, len(self.header)
        data, ends = b"".join(pictures), np.cumsum([len(picture) for picture in pictures])
        begins = np.concatenate(([0], ends[:-1]))
        if len(pictures) * height > LARGEST or not all(data.startswith(self.header, at) for at in begins.tolist()):
            return None
        restarts = _restarts(data)
        number = np.searchsorted(begins, restarts, side="right") - 1  # of the picture that each is in
        coded = restarts >= begins[number] + begin
        each = across * down - 1
        if np.any(np.bincount(number[coded], minlength=len(pictures)) != each):
            return None
        if not all(data[end - 2 : end] == END for end in ends.tolist()):
            return None
        # A tile begins behind the marker before it; the first and the last have none on one side.
        bounds = np.column_stack((begins + begin - 2, restarts[coded].reshape(len(pictures), each), ends - 2))
        rows = np.arange(top * across, bottom * across, across)
        starts, stops = (bounds[:, rows + left] + 2).ravel().tolist(), bounds[:, rows + right].ravel().tolist()
        pieces: list[Buffer] = [with_size(self.header, width, len(pictures) * height)]
        for start, stop in zip(starts, stops, strict=True):
            pieces += data[start:stop], RESTART
        pieces[-1] = END
        return Stack(b"".join(pieces), left * self.wide, top * self.high, height)


def tiles_of(picture: Buffer) -> Tiles | None:
    """The tiles of a JPEG: baseline, three components in one scan, and restart markers that divide its rows evenly.

    Returns:
        None if it is something else, or damaged.
    """
    interval = width = height = wide = high = components = 0
    for kind, start, end in segments(picture):
        content = picture[start:end]
        if kind == INTERVAL and len(content) == 2:
            interval = int.from_bytes(content, "big")
        elif kind == BASELINE and len(content) == 15 and not components:
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            components = content[5]
            wide = 8 * max(sampling >> 4 for sampling in content[7::3])
            high = 8 * max(sampling & 15 for sampling in content[7::3])
        elif kind == SCAN:
            if not (interval and width and height and wide and high) or components != 3 or content[:1] != b"\x03":
                return None
            across = -(-width // wide)
            return None if across % interval else Tiles(bytes(picture[:end]), width, height, wide * interval, high)
        elif kind not in _HARMLESS:
            return None
    return None


def with_size(header: bytes, width: int, height: int) -> bytes:
    """What precedes the first block of a JPEG, for a picture of another size in pixels."""
    at = next(start + 1 for kind, start, _ in segments(header) if kind == BASELINE)  # behind the depth
    return header[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + header[at + 4 :]


def segments(picture: Buffer) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of the content of each segment of a JPEG, to where its first scan begins or it is damaged."""
    at, kind = 2, 0
    while kind != SCAN and picture[:2] == START and at + 4 <= len(picture) and picture[at] == 0xFF:
        kind, length = picture[at + 1], int.from_bytes(picture[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(picture):
            return
        yield kind, at + 4, at + 2 + length
        at += 2 + length


def _restarts(data: bytes) -> np.ndarray:
    """Where restart markers are: int (M,), rising."""
    octets = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(octets[:-1] == 0xFF)
    return at[(octets[at + 1] & 0xF8) == RESTART[1]]
