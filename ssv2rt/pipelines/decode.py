"""Clips by PyAV: decode, and let libswscale cut, scale and convert only the frames that are asked for.

One pass over YUV pictures makes the RGB window, so nothing is converted that is not kept, and where a key frame lets
the decoder begin anew, nothing is decoded that no frame asked for depends on. Letters: T frames, S size.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
import av.filter
import numpy as np

from ssv2rt.dataset.probe import BadVideo, VideoSource, open_video, reason_of
from ssv2rt.pipelines.source import ClipRequest


def decode_clip(source: VideoSource, request: ClipRequest, *, size: int) -> np.ndarray:
    """The frames and the window of a request, before flip and colour.

    Args:
        source: the video.
        request: which frames and window.
        size: S, height and width of the result in pixels.

    Returns:
        uint8 RGB (T, S, S, 3).

    Raises:
        BadVideo: it cannot be decoded, or ends before the frames asked for.
    """
    wanted = request.frames
    clip = np.empty((len(wanted), size, size, 3), np.uint8)
    cutter = _Cutter(request, size)
    done, last = 0, -1  # rows of the clip that are filled; number of the last frame seen
    with open_video(source) as container:
        try:
            for number, frame in _frames(container, wanted):
                last = number
                if number < wanted[done]:
                    continue
                if frame.is_corrupt:
                    raise BadVideo("corrupt")
                cutter.cut(frame, clip[done])
                done += 1
                while done < len(wanted) and wanted[done] == number:
                    clip[done] = clip[done - 1]
                    done += 1
                if done == len(wanted):
                    return clip
        except av.error.FFmpegError as error:
            raise BadVideo(reason_of(error)) from None
    # Some containers count a packet or two that show no picture; anything more is a file that lost its end.
    if done and wanted[-1] <= last + 2 + last // 50:
        clip[done:] = clip[done - 1]
        return clip
    raise BadVideo("truncated" if last >= 0 else "unreadable")


_INDEPENDENT = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs in which a packet is a frame, in display order, and a key frame forgets all that was before it."""


def _frames(container: av.container.InputContainer, wanted: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of the first video stream with their numbers, from 0, less some that nothing wanted depends on."""
    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # clips are decoded side by side
    if stream.codec_context.name not in _INDEPENDENT:
        yield from enumerate(container.decode(stream))
        return
    packets = [packet for packet in container.demux(stream) if packet.size]
    needed = np.zeros(len(packets), bool)
    keys = np.flatnonzero([packet.is_keyframe for packet in packets])
    for number in np.unique(wanted[wanted < len(packets)]):
        at = np.searchsorted(keys, number, side="right") - 1
        needed[keys[at] if at >= 0 else 0 : number + 1] = True
    for number in np.flatnonzero(needed):
        for frame in stream.codec_context.decode(packets[number]):
            yield int(number), frame


class _Cutter:
    """A filter graph that cuts and scales; made anew when the size or format of the frames changes in mid-stream."""

    def __init__(self, request: ClipRequest, size: int) -> None:
        self._request, self._size = request, size
        self._made_for: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def cut(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Writes the window of `frame` to `out`, uint8 (S, S, 3)."""
        look = (frame.width, frame.height, frame.format.name)
        if look != self._made_for:
            self._graph, self._made_for = self._make(frame), look
        assert self._graph is not None
        self._graph.push(frame)
        plane = self._graph.vpull().planes[0]
        row = np.frombuffer(memoryview(plane), np.uint8).reshape(self._size, plane.line_size)
        out[:] = row[:, : 3 * self._size].reshape(self._size, self._size, 3)

    def _make(self, frame: av.VideoFrame) -> av.filter.Graph:
        width, height = self._request.coded_size
        window = self._request.window
        if (frame.width, frame.height) != (width, height):
            window = window.scaled(frame.width / width, frame.height / height)
        graph = av.filter.Graph()
        graph.threads = 1  # by default it starts threads of its own, in more time than the cutting takes
        graph.link_nodes(
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
            graph.add("crop", f"{window.width}:{window.height}:{window.left}:{window.top}"),
            # Without full_chroma_int the colours come out 2 of 255 too dark, at the same speed.
            graph.add("scale", f"{self._size}:{self._size}:flags=bilinear+full_chroma_int"),
            graph.add("format", "pix_fmts=rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph
