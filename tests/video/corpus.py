"""Small videos of every kind that PyAV can write, and what a plain decoder shows of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np

from ssv2rt.video.container import ODD_TAGS

FORMATS = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "3gp": "3gp", "h264": "h264", "m4v": "m4v", "wmv": "asf"}
"""FFmpeg's names of muxers, where they differ from the extension."""


class Kind(NamedTuple):
    """How pictures are coded, and which containers take them."""

    codec: str
    suffixes: tuple[str, ...]
    pixels: str = "yuv420p"
    options: Mapping[str, str] = {}
    size: tuple[int, int] = (96, 64)
    flags: int = 0


_X264 = "keyint=12:min-keyint=12:scenecut=0:b-adapt=0"
_X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:frame-threads=1:pools=none"
KINDS = {
    "h264": Kind("libx264", ("mp4", "mov", "mkv", "avi", "ts", "flv", "nut", "h264"), options={"x264-params": _X264}),
    "h264 open": Kind(
        "libx264",
        ("mp4", "mkv", "ts", "flv"),
        options={"x264-params": f"{_X264}:open-gop=1:bframes=4:b-pyramid=normal"},
    ),
    "h264 interlaced": Kind("libx264", ("mp4", "ts"), options={"x264-params": f"{_X264}:tff=1"}),
    "h264 refresh": Kind("libx264", ("mp4", "ts"), options={"x264-params": "intra-refresh=1:keyint=12:bframes=2"}),
    "h264 delimiters": Kind("libx264", ("ts", "h264"), options={"x264-params": f"{_X264}:aud=1:slices=3"}),
    "h264 deep": Kind("libx264", ("mp4", "mkv"), options={"x264-params": f"{_X264}:bframes=9:b-pyramid=strict:ref=6"}),
    "hevc": Kind("libx265", ("mp4", "mkv", "ts"), options={"x265-params": f"{_X265}:no-open-gop=1:bframes=4"}),
    "hevc open": Kind("libx265", ("mp4", "mkv", "ts"), options={"x265-params": f"{_X265}:bframes=4:b-pyramid=1"}),
    "vp8": Kind(
        "libvpx",
        ("webm", "ivf", "avi", "ogg"),
        options={"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7", "b": "40k"},
    ),
    "vp9": Kind(
        "libvpx-vp9", ("webm", "mp4", "ivf"), options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    ),
    "av1": Kind("libsvtav1", ("mp4", "webm", "ivf"), options={"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg1": Kind("mpeg1video", ("mpg",), options={"bf": "2"}),
    "mpeg2": Kind("mpeg2video", ("ts", "mpg", "mkv", "mp4", "mxf"), options={"bf": "2"}),
    "mpeg4": Kind("mpeg4", ("avi", "mp4", "mkv"), options={}),
    "mpeg4 b": Kind("mpeg4", ("avi", "mp4", "mkv", "ts"), options={"bf": "2"}),
    "h263": Kind("h263", ("3gp", "mov"), size=(176, 144)),
    "flv1": Kind("flv", ("flv",)),
    "wmv2": Kind("wmv2", ("wmv", "avi")),
    "mjpeg": Kind("mjpeg", ("avi", "mov", "mkv"), "yuvj420p"),
    "ffv1": Kind("ffv1", ("mkv", "avi", "nut")),
    "prores": Kind("prores_ks", ("mov",), "yuv422p10le"),
    "dnxhd": Kind("dnxhd", ("mov", "mxf"), "yuv422p", {"profile": "dnxhr_lb"}, (256, 128)),
    "huffyuv": Kind("huffyuv", ("avi",), "yuv422p"),
    "gif": Kind("gif", ("gif",), "rgb8"),
    "png": Kind("png", ("mov", "nut"), "rgb24"),
    "qtrle": Kind("qtrle", ("mov",), "rgb24"),
}
Change = Callable[[int, av.Packet], bool]
"""Changes the packet of a number, or says that it is left out by returning False."""


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Bars that move over a gray that changes: no two frames are alike. uint8 (height, width, 3)."""
    made = np.full((height, width, 3), 40 + 5 * (number % 32), np.uint8)
    made[:, 2 * number % (width - 16) : 2 * number % (width - 16) + 16] = 220
    made[3 * number % (height - 8) : 3 * number % (height - 8) + 8, :, 1] = 10
    return made


@contextlib.contextmanager
def own_priority() -> Iterator[None]:
    """Gives the thread its priority back: for root, SVT-AV1 makes the thread that calls it a real-time one, for good.

    A real-time thread that waits in a loop, as libvpx does, does not let other threads run, also not those that it waits for.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@own_priority()
def encode(
    kind: Kind, suffix: str, frames: int, *, gop: int = 12, bframes: int | None = None, sound: float = 0.0, **muxer: str
) -> bytes:
    """A video at 25 frames a second.

    Args:
        kind: how it is coded.
        suffix: of its container.
        frames: how many.
        gop: frames from one key frame to the next, for encoders without a setting of their own for it.
        bframes: B frames in a row, for MPEG-1, MPEG-2 and MPEG-4.
        sound: seconds of sound; none by default.
        muxer: options of the muxer.
    """
    width, height = kind.size
    options = dict(kind.options) | ({} if bframes is None else {"bf": str(bframes)})
    with (
        tempfile.NamedTemporaryFile() as file,  # an MP4 with its index in front is opened twice
        av.open(file.name, "w", format=FORMATS.get(suffix, suffix), options={"strict": "-2", **muxer}) as container,
    ):
        stream = container.add_stream(kind.codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, kind.pixels
        stream.time_base = Fraction(1, 25)
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        tone = container.add_stream(_SOUND[suffix], rate=48000 if suffix != "flv" else 44100) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24").reformat(
                format=kind.pixels
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            noise = np.random.default_rng(0).integers(-3000, 3000, (1, int(sound * tone.rate)), np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = tone.rate, 0, Fraction(1, tone.rate)
            resampler = av.AudioResampler(tone.format, tone.layout, tone.rate, tone.frame_size or 1024)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(tone.encode(part))
            container.mux(tone.encode(None))
        container.close()
        return Path(file.name).read_bytes()


_SOUND = {
    "mp4": "aac", "mov": "pcm_s16le", "mkv": "aac", "webm": "libopus", "avi": "mp2", "flv": "aac", "wmv": "mp2",
    "ogg": "libopus", "mxf": "pcm_s16le",
}  # fmt: skip


def remux(data: bytes, suffix: str, change: Change = lambda number, packet: True, **muxer: str) -> bytes:
    """The same packets, or some of them, in another container."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as before,
        av.open(buffer, "w", format=FORMATS.get(suffix, suffix), options={"strict": "-2", **muxer}) as after,
    ):
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(p for p in before.demux(video=0) if p.size):
            if change(number, packet):
                packet.stream = stream
                after.mux(packet)
    return buffer.getvalue()


def shown(data: bytes) -> list[av.VideoFrame]:
    """Every frame that FFmpeg's decoder gives, in its order."""
    with av.open(io.BytesIO(data), **ODD_TAGS) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "NONE"
        frames: list[av.VideoFrame] = []
        for packet in container.demux(stream):
            try:
                frames += stream.codec_context.decode(packet if packet.size else None)
            except av.error.FFmpegError:
                continue
        return frames


def pixels(frame: av.VideoFrame) -> str:
    """A hash of a frame's planes."""
    digest = hashlib.md5()
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
        digest.update(np.ascontiguousarray(rows.reshape(plane.height, plane.line_size)[:, : plane.width]))
    return digest.hexdigest()


def every(kinds: Iterable[str] = KINDS) -> list[tuple[str, str]]:
    """Kinds with each of their containers."""
    return [(name, suffix) for name in kinds for suffix in KINDS[name].suffixes]
