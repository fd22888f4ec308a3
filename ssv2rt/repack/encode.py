"""Repacks one clip: decodes all its frames, scales them to the size that training needs, and codes them anew.

Rotation is applied, alpha and sound are dropped, and colors become BT.601 with 8 bits, which every decoder assumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import av.error
import av.filter
import numpy as np

from ssv2rt.core.atomic_files import flush_to_disk
from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import Worker
from ssv2rt.dataset.file_facts import ProbeFacts, file_facts
from ssv2rt.repack.settings import Settings
from ssv2rt.repack.tiled_jpeg import TiledJpeg
from ssv2rt.video.container import (
    CLIP_ERRORS,
    OK,
    BadVideo,
    as_bad,
    is_process_error,
    open_video,
    orientation,
    process_error,
    video_stream,
)
from ssv2rt.video.probe import VideoMeta
from ssv2rt.video.sampling import frames_at_time
from ssv2rt.video.seek import all_frames

_TICK = Fraction(1, 1000)
"""Seconds. Matroska and WebM have no finer times."""


@dataclass(frozen=True)
class Task:
    """A clip to repack."""

    source: Path
    target: Path
    meta: VideoMeta
    """Of the source."""


def repacker(*, work: Path, settings: Settings) -> Worker[Task, ProbeFacts]:
    """What a worker process does.

    Args:
        work: folder on the file system of the targets, for unfinished files.
        settings: how clips are coded.
    """

    def run(batches: Iterable[list[tuple[int, Task]]]) -> Iterator[list[tuple[int, ProbeFacts]]]:
        for batch in batches:
            for number, task in batch:
                yield [(number, repack_clip(task, work / f"{os.getpid()}.partial", settings))]

    return Worker(run, 1, 2)


def repack_clip(task: Task, temporary: Path, settings: Settings) -> ProbeFacts:
    """Repacks a clip. Its file appears complete, or not at all.

    Args:
        task: the clip.
        temporary: where its file is written first.
        settings: how it is coded.

    Returns:
        The facts of the new file, see `file_facts`, and the width and height of the source's frames as shown: crops refer to
        these. If the clip cannot be repacked, its status says why.

    Raises:
        UserError: the file cannot be written, or reading failed for another reason than the clip.
    """
    try:
        frames = _write(task, settings, temporary)
        facts = file_facts(temporary, None, decode=False)
        assert facts is not None
        if facts["status"] != OK or facts["frames"] != frames:
            raise BadVideo(f"repacked file is {facts['status'] if facts['status'] != OK else 'incomplete'}")
        flush_to_disk(temporary)
        os.replace(temporary, task.target)
        flush_to_disk(task.target.parent)
        return facts | {"width": task.meta.width, "height": task.meta.height}
    except BadVideo as error:
        temporary.unlink(missing_ok=True)
        return {"status": str(error), "suspicion": "", "decoded": False}
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_process_error(error):
            raise process_error(task.source, error) from None
        raise UserError(
            f"cannot write '{task.target}': {error.strerror or error}; mend that, and run the same command to go on"
        ) from None


def frame_times(meta: VideoMeta) -> np.ndarray:
    """When each frame of a clip appears, as its manifest has it: float64 (frames,), seconds from the first."""
    return np.arange(meta.frames) * _step(meta) if meta.times is None else meta.times.astype(np.float64)


def frames_at_rate(meta: VideoMeta, fps: float | None) -> np.ndarray | None:
    """The numbers of the frames that a clip has at another frame rate: int32, never falling.

    Returns:
        None if all frames stay: no rate is given, or it is not lower than the clip's own.
    """
    times = frame_times(meta)
    end = meta.duration or times[-1] + _step(meta)
    if fps is None or fps >= (meta.frames - 0.5) / end:
        return None
    return frames_at_time(np.arange(max(1, round(end * fps))) / fps, times)


def _step(meta: VideoMeta) -> float:
    """Seconds from one frame to the next on average; at SSv2's rate where the file has no times."""
    return meta.duration / meta.frames or 1 / 12


class _Output:
    """A file that FFmpeg writes, and the error that ended writing: closing the container raises another in its place."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _write(task: Task, settings: Settings, path: Path) -> int:
    """Writes the new file, and returns how many frames it has. Raises OSError if it cannot be written."""
    with path.open("wb") as file:
        output = _Output(file)
        try:
            return _encode(task, settings, output)
        except (OSError, av.error.FFmpegError) as error:
            raise output.error or error from None


def _encode(task: Task, settings: Settings, file: _Output) -> int:
    """See `_write`."""
    meta, codec = task.meta, settings.coding
    size = settings.frame_size(meta.width, meta.height)
    chosen = frames_at_rate(meta, settings.fps)
    times = frame_times(meta)
    same = max(_ROUNDED, 0.5 * _step(meta) if meta.times is None else 0.0)
    count = meta.frames if chosen is None else len(chosen)
    rate = Fraction(settings.fps) if settings.fps and chosen is not None else Fraction(1 / _step(meta))
    rate = rate.limit_denominator(1000) or Fraction(1, 1000)
    with av.open(file, "w", format=codec.muxer, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec.encoder, rate=rate, options=_options(settings))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = *size, codec.pixels
        stream.time_base = context.time_base = _TICK
        context.thread_count = 1  # clips are coded side by side
        context.colorspace, context.color_range = _BT601, _FULL if codec.encoder == "mjpeg" else _LIMITED
        context.sample_aspect_ratio = Fraction(meta.width * size[1], meta.height * size[0]).limit_denominator(1000)
        tiled = None
        if codec.encoder == "mjpeg":
            tiled = TiledJpeg(
                *size,
                quality=settings.quality,
                aspect=context.sample_aspect_ratio,
                color=(_BT601, _FULL),
                tick=_TICK,
            )
        scaler = _Scaler(size, codec.pixels)

        def mux(picture: av.VideoFrame | None) -> None:
            for packet in tiled.encode(picture) if tiled else stream.encode(picture):
                packet.stream = stream
                container.mux(packet)

        done, last, clock = 0, -1, chosen is None
        for number, stamp, frame in _frames(task):
            clock = clock and stamp is not None and abs(stamp - times[number]) <= same
            for _ in range(1 if chosen is None else np.count_nonzero(chosen == number)):
                seconds = (
                    done / float(rate)
                    if chosen is not None
                    else stamp
                    if clock and stamp is not None
                    else times[number]
                )
                picture = scaler.scale(frame)
                last = max(last + 1, round(seconds / float(_TICK)))  # times that are equal in ticks would lose a frame
                picture.pts, picture.time_base, picture.pict_type = last, _TICK, 0
                mux(picture)
                done += 1
        mux(None)
    if done != count:
        raise BadVideo("corrupt")
    return count


_ROUNDED = 0.002
"""Seconds by which a frame's own time may differ from that of the manifest, which is rounded. Of frames that are taken to be
evenly spaced it may differ more, by half a frame; beyond that, it means nothing."""
_BT601, _LIMITED, _FULL = 6, 1, 2
"""FFmpeg's numbers (ITU-T H.273)."""


def _options(settings: Settings) -> dict[str, str]:
    quality = {"crf": str(settings.quality)} if settings.coding.encoder == "libx264" else {}
    return dict(settings.coding.options) | quality


def _frames(task: Task) -> Iterator[tuple[int, float | None, av.VideoFrame]]:
    """All frames of a clip with their numbers, and their own times in seconds from the first, if they have them.

    Raises:
        BadVideo: they cannot all be decoded.
        OSError: see `is_process_error`.
    """
    first: int | None = None
    number = -1
    try:
        with open_video(task.source) as container:
            tick = video_stream(container).time_base or Fraction(0)
        for number, frame in all_frames(task.source, task.meta.frames):
            if frame.is_corrupt or number >= task.meta.frames:
                raise BadVideo("corrupt")
            if number == 0:
                first = frame.pts
            stamp = None if frame.pts is None or first is None else float((frame.pts - first) * tick)
            yield number, stamp, frame
    except CLIP_ERRORS as error:
        raise as_bad(error, begun=number >= 0) from None
    if number + 1 < task.meta.frames:
        raise BadVideo("corrupt" if number >= 0 else "unreadable")


class _Scaler:
    """Upright frames of one size, in BT.601, by libswscale."""

    def __init__(self, size: tuple[int, int], pixels: str) -> None:
        self._size, self._pixels = size, pixels
        self._made_for: tuple[object, ...] = ()
        self._graph = av.filter.Graph()

    def scale(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame may have another size or format than the last: a stream may change them."""
        turn = orientation(frame)
        look = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), turn)
        if look != self._made_for:
            self._graph, self._made_for = self._make(frame, turn), look
        self._graph.push(frame)
        return self._graph.vpull()

    def _make(self, frame: av.VideoFrame, turn: tuple[bool, bool, bool]) -> av.filter.Graph:
        wide, high = self._size[::-1] if turn[0] else self._size
        full = self._pixels == "yuvj420p"
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_TICK),
            graph.add(
                "scale",
                f"{wide}:{high}:flags=bicubic+full_chroma_int+accurate_rnd:out_color_matrix=bt601"
                f":out_range={'full' if full else 'limited'}",
            ),
            graph.add("format", f"pix_fmts={self._pixels}"),
        ]
        if turn[0]:
            nodes.append(graph.add("transpose", "dir=cclock_flip"))
        nodes += [graph.add(name) for name, wanted in zip(("hflip", "vflip"), turn[1:], strict=True) if wanted]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph
