"""Crops of a decoded frame, scaled and in RGB, by libswscale in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import av.filter
import numpy as np

from ssv2rt.video.container import orientation
from ssv2rt.video.crops import CropBox, bounding_box

_ANY_TIME = Fraction(1, 1000)
"""A filter graph needs a time base; nothing here depends on it."""


class CropScaler:
    """Cuts the same crops out of the frames of one video.

    Crops of one size are cut from one scaled picture of their bounding box, so that they are placed to half a pixel of the
    result.

    Args:
        crops: S of them.
        frame_size: width and height, as shown, of the frames that the crops refer to, in pixels.
        size: height and width of a scaled crop, in pixels.
        mirrored: whether scaled crops are mirrored left to right.
    """

    def __init__(
        self, crops: Sequence[CropBox], frame_size: tuple[int, int], size: int, *, mirrored: bool = False
    ) -> None:
        self._crops, self._frame_size, self._size, self._mirrored = crops, frame_size, size, mirrored
        self._made_for: tuple[object, ...] = ()
        self._scalers: list[_Scaler] = []

    def region(self, width: int, height: int) -> CropBox:
        """The part of upright frames that the crops lie in, by the width and height of the frames in pixels."""
        return bounding_box(self._crops_of((width, height)))

    def cut(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Writes the crops of `frame` to `out`, uint8 (S, size, size, 3).

        Crops are scaled to a frame of another size than expected: a stream may change its size.
        """
        self.cut_parts(frame, out[:, None], CropBox(0, 0, frame.width, frame.height))

    def cut_parts(self, frame: av.VideoFrame, out: np.ndarray, within: CropBox) -> None:
        """Writes the crops of n frames whose parts of equal height lie in `frame`, one below the other.

        Args:
            frame: n parts; a whole frame is the only one.
            out: uint8 (S, n, size, size, 3); any view.
            within: left and top of each part in its whole frame, and width and height of the whole frame, in pixels.
        """
        look = (frame.width, frame.height, frame.format.name, within, out.shape[1])
        if look != self._made_for:
            self._scalers, self._made_for = self._make(frame, within, out.shape[1]), look
        for scaler in self._scalers:
            scaler.cut(frame, out)

    def _crops_of(self, shown: tuple[int, int]) -> list[CropBox]:
        if shown == self._frame_size:
            return list(self._crops)
        return [w.scaled(shown[0] / self._frame_size[0], shown[1] / self._frame_size[1]) for w in self._crops]

    def _make(self, frame: av.VideoFrame, within: CropBox, parts: int) -> list[_Scaler]:
        turn = orientation(frame)
        size = within.width, within.height
        crops = [w.unturned(turn, size) for w in self._crops_of(size[::-1] if turn[0] else size)]
        crops = [w._replace(left=w.left - within.left, top=w.top - within.top) for w in crops]
        if self._mirrored:
            turn = turn[0], not turn[1], turn[2]
        if len({(w.width, w.height) for w in crops}) == 1:
            return [_Scaler(frame, parts, crops, self._size, turn, range(len(crops)))]
        return [_Scaler(frame, parts, [w], self._size, turn, [at]) for at, w in enumerate(crops)]


class _Scaler:
    """One filter graph: the bounding box of some crops of equal size, scaled, of all parts of a frame."""

    def __init__(
        self,
        frame: av.VideoFrame,
        parts: int,
        crops: Sequence[CropBox],
        size: int,
        turn: tuple[bool, bool, bool],
        rows: Sequence[int],
    ) -> None:
        self._size, self._turn, self._rows = size, turn, rows
        outer = bounding_box(crops)
        x, y = size / crops[0].width, size / crops[0].height
        self._wide, self._high = max(size, round(outer.width * x)), max(size, round(outer.height * y))
        self._corners = [
            (
                min(round((w.top - outer.top) * y), self._high - size),
                min(round((w.left - outer.left) * x), self._wide - size),
            )
            for w in crops
        ]
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # by default it starts threads of its own, in more time than the cutting takes
        filters = [
            ("crop", f"{outer.width}:{outer.height}:{outer.left}:{outer.top}:exact=1"),
            # Without full_chroma_int the colors come out 2 of 255 too dark.
            ("scale", f"{self._wide}:{self._high}:flags=bilinear+full_chroma_int"),
            # To planes, because libswscale has fast code for them and none for rgb24; the pixels are the same.
            ("format", "pix_fmts=gbrp"),
        ]
        if parts > 1:  # one call for all of them, during which other threads run
            filters = [("untile", f"1x{parts}"), *filters, ("tile", f"1x{parts}")]
        self._graph.link_nodes(
            self._graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME),
            *(self._graph.add(name, options) for name, options in filters),
            self._graph.add("buffersink"),
        ).configure()

    def cut(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Cuts the crops out of all parts: see `CropScaler.cut_parts`."""
        self._graph.push(frame)
        scaled = self._graph.vpull()
        green, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, self._high, plane.line_size)
            for plane in scaled.planes
        )
        for row, (top, left) in zip(self._rows, self._corners, strict=True):
            clip = _turned(out[row], self._turn)
            for channel, plane in enumerate((red, green, blue)):
                clip[..., channel] = plane[:, top : top + self._size, left : left + self._size]


def _turned(clip: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """A view of upright pictures (n, H, W, 3), into which the pixels of coded ones can be written: `container.orientation`."""
    transposed, mirrored, upside_down = turn
    if upside_down:
        clip = clip[:, ::-1]
    if mirrored:
        clip = clip[:, :, ::-1]
    return clip.swapaxes(1, 2) if transposed else clip
