"""JPEG pictures with restart markers, which divide them into tiles: see `video.jpeg_tiles`.

FFmpeg's encoder sets a restart marker at the end of a row of blocks, and nowhere else. So it is given the tiles of a picture
one below the other. It codes the same bits as for the picture, and only the height and the width in the header have to be
changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from ssv2rt.video.jpeg_tiles import END, LARGEST, SCAN, segments, with_size

_BLOCK = 16
"""Pixels across and down that are coded together, with color samples for two pixels by two."""
_ACROSS = 9
"""About as many tiles are beside each other: with more, the file grows, and with fewer, more is decoded around a crop."""
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


class TiledJpeg:
    """Codes the frames of a clip.

    Args:
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        quality: a constant quantizer, 2 (best) to 31, as FFmpeg's -q:v.
        aspect: width over height of a pixel.
        color: FFmpeg's numbers of the color space and of the range.
        tick: seconds between two times of frames that differ by one.
    """

    def __init__(
        self, width: int, height: int, *, quality: int, aspect: Fraction, color: tuple[int, int], tick: Fraction
    ) -> None:
        self._size = width, height
        blocks, rows = -(-width // _BLOCK), -(-height // _BLOCK)
        self._blocks = blocks_of_tile(blocks, rows)
        self._grid = rows, blocks // self._blocks
        stacked = self._blocks * _BLOCK, rows * self._grid[1] * _BLOCK
        context = av.CodecContext.create("mjpeg", "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = *stacked, "yuvj420p"
        context.colorspace, context.color_range = color
        context.sample_aspect_ratio, context.time_base = aspect, tick
        context.qmin = context.qmax = quality
        context.bit_rate = 1 << 30
        context.options = {"huffman": "default", "flags": "+bitexact"}
        context.thread_type, context.thread_count = "SLICE", 2  # with one thread, there are no restart markers
        self._context = context

    def encode(self, frame: av.VideoFrame | None) -> Iterator[av.Packet]:
        """The packets of a frame in yuvj420p, or what is left if it is None."""
        for packet in self._context.encode(None if frame is None else self._stacked(frame)):
            coded = bytes(packet)
            begin = next(end for kind, _, end in segments(coded) if kind == SCAN)
            # Where two threads meet, FFmpeg's numbers do not follow each other, and a marker may stand behind the last tile.
            tiles = [tile for tile in _RESTART.split(coded[begin:-2]) if tile]
            markers = [bytes((0xFF, 0xD0 + number % 8)) for number in range(len(tiles) - 1)]
            scan = chain.from_iterable(zip(tiles, [*markers, END], strict=True))
            result = av.Packet(b"".join([with_size(coded[:begin], *self._size), *scan]))
            result.pts = result.dts = packet.pts
            result.time_base, result.is_keyframe = packet.time_base, True
            yield result

    def _stacked(self, frame: av.VideoFrame) -> av.VideoFrame:
        rows, across = self._grid
        result = av.VideoFrame(self._context.width, self._context.height, "yuvj420p")
        for source, target, block in zip(frame.planes, result.planes, (_BLOCK, _BLOCK // 2, _BLOCK // 2), strict=True):
            pixels = _pixels(source)
            wide, high = self._blocks * block, rows * block
            margins = (0, high - source.height), (0, across * wide - source.width)
            tiles = np.pad(pixels, margins, "edge").reshape(rows, block, across, wide).transpose(0, 2, 1, 3)
            _pixels(target)[:] = tiles.reshape(-1, wide)
        result.pts, result.time_base = frame.pts, frame.time_base
        return result


def blocks_of_tile(blocks: int, rows: int) -> int:
    """Width of a tile in blocks.

    Args:
        blocks: in a row of the picture.
        rows: of blocks.

    Returns:
        A divisor of `blocks`.
    """
    fits = [
        width for width in range(1, blocks + 1) if blocks % width == 0 and rows * blocks // width * _BLOCK <= LARGEST
    ]
    two = [width for width in fits if 1 < width < blocks]  # of one block, restart markers are 14% of the bytes
    return min(two or fits, key=lambda width: abs(width - blocks / _ACROSS))


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.asarray(memoryview(plane)).reshape(-1, plane.line_size)[: plane.height, : plane.width]
