"""Whole frames in RGB, upright and in square pixels, scaled by libswscale."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np

from ssv2rt.video.container import orientation

_ANY_TIME = Fraction(1, 1000)
"""A filter graph needs a time base; nothing here depends on it."""


class UprightScaler:
    """Scales the frames of one video to one size, chosen by its first frame.

    Args:
        longest: the longer side of the result in pixels at most; smaller videos keep their size. Sides are even, as
            H.264 needs them.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.size: tuple[int, int] | None = None
        """Width and height of the result; None before the first frame."""
        self._made_for: tuple[object, ...] = ()

    def scale(self, frame: av.VideoFrame, pixel_shape: Fraction) -> np.ndarray:
        """A frame in RGB.

        Args:
            frame: as the decoder gives it.
            pixel_shape: width of a pixel divided by its height, before it is turned.

        Returns:
            uint8 (H, W, 3) of `size`.
        """
        turn = orientation(frame)
        look = (frame.width, frame.height, frame.format.name, turn)
        if self.size is None:
            self.size = self._fitted(frame, pixel_shape, transposed=turn[0])
        if look != self._made_for:
            self._graph, self._made_for = self._make(frame, transposed=turn[0]), look
        self._graph.push(frame)
        scaled = self._graph.vpull()
        # From planes, because libswscale has fast code for them and none for rgb24.
        green, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            for plane in scaled.planes
        )
        picture = np.stack((red, green, blue), axis=-1)
        transposed, mirrored, upside_down = turn
        picture = picture.swapaxes(0, 1) if transposed else picture
        return np.ascontiguousarray(picture[:: -1 if upside_down else 1, :: -1 if mirrored else 1])

    def _fitted(self, frame: av.VideoFrame, pixel_shape: Fraction, *, transposed: bool) -> tuple[int, int]:
        wide, high = float(frame.width * pixel_shape), float(frame.height)
        factor = min(1.0, self._longest / max(wide, high))
        width, height = (max(2, 2 * int(side * factor / 2 + 1e-6)) for side in (wide, high))
        return (height, width) if transposed else (width, height)

    def _make(self, frame: av.VideoFrame, *, transposed: bool) -> av.filter.Graph:
        assert self.size is not None
        width, height = self.size[::-1] if transposed else self.size
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME),
            graph.add("scale", f"{width}:{height}:flags=bilinear+full_chroma_int"),
            graph.add("format", "pix_fmts=gbrp"),
            graph.add("buffersink"),
        ).configure()
        return graph
