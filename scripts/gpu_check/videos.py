"""Videos to decode: small ones of every codec that this PyAV writes, and a set coded as SSv2's are."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from gpu_check.record import Missing, Record


@dataclass(frozen=True)
class Coding:
    """How a video is made."""

    encoder: str
    """FFmpeg's name."""
    suffix: str
    pixels: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()


CODINGS = {
    "vp9": Coding("libvpx-vp9", "webm", options=(("deadline", "realtime"), ("cpu-used", "8"))),
    "vp8": Coding("libvpx", "webm", options=(("deadline", "realtime"), ("cpu-used", "8"))),
    "h264": Coding("libx264", "mp4", options=(("preset", "veryfast"), ("bf", "2"))),
    "hevc": Coding("libx265", "mp4", options=(("preset", "ultrafast"), ("x265-params", "log-level=none"))),
    "av1": Coding("libsvtav1", "mp4", options=(("preset", "12"), ("svtav1-params", "fast-decode=1"))),
    "mpeg4": Coding("mpeg4", "mp4"),
    "mjpeg": Coding("mjpeg", "avi", pixels="yuvj420p"),
    "vp9, 10 bit": Coding("libvpx-vp9", "webm", "yuv420p10le", (("deadline", "realtime"), ("cpu-used", "8"))),
    "vp9, 4:4:4": Coding("libvpx-vp9", "webm", "yuv444p", (("deadline", "realtime"), ("cpu-used", "8"))),
    "hevc, 10 bit": Coding(
        "libx265", "mp4", "yuv420p10le", (("preset", "ultrafast"), ("x265-params", "log-level=none"))
    ),
    "h264, 10 bit": Coding("libx264", "mp4", "yuv420p10le", (("preset", "veryfast"),)),
}

BLOCKS = ((220, 20, 20), (20, 220, 20), (20, 20, 220), (220, 220, 220))
"""Colours of the quarters of a `still`: top left, top right, bottom left, bottom right."""


def moving(number: int, width: int, height: int) -> np.ndarray:
    """Frame `number` of a film without sharp edges, of which no two frames are alike: uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin((x + (3 + k) * number) / 23 + k) + np.cos((y - 5 * number) / 19 + 2 * k) for k in range(3)]
    return (127 + 50 * np.stack(waves, axis=-1) + 12 * np.sin(number / 3)).astype(np.uint8)


def still(width: int, height: int) -> np.ndarray:
    """Four quarters of a colour each: uint8 (height, width, 3)."""
    picture = np.empty((height, width, 3), np.uint8)
    for number, color in enumerate(BLOCKS):
        top, left = number // 2 * (height // 2), number % 2 * (width // 2)
        picture[top : top + height - height // 2, left : left + width - width // 2] = color
    return picture


def film(
    path: Path,
    coding: str,
    *,
    width: int,
    height: int,
    frames: int,
    gop: int = 12,
    picture: Any = moving,
    matrix: int = 5,
    full_range: bool = False,
    degrees: int = 0,
) -> Path:
    """Writes a video.

    Args:
        path: without its suffix.
        coding: one of `CODINGS`.
        width: pixels.
        height: pixels.
        frames: how many.
        gop: frames from one key frame to the next.
        picture: draws frame `number`.
        matrix: FFmpeg's number of the colour matrix: 1 is BT.709, 5 BT.601.
        full_range: whether black is 0.
        degrees: by which it is to be turned, counter-clockwise, when shown; for MP4.

    Raises:
        Missing: this PyAV has no such encoder.
    """
    how = CODINGS[coding]
    path = path.with_name(f"{path.name}.{how.suffix}")
    try:
        av.codec.Codec(how.encoder, "w")
    except ValueError:
        raise Missing(f"encoder {how.encoder}", "PyAV was built without it") from None
    with av.open(str(path), "w") as container:
        stream = container.add_stream(how.encoder, rate=12, options=dict(how.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, how.pixels
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 20 * width * height  # so much that what is lost is not seen
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range or how.encoder == "mjpeg" else 1
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(frames):
            pixels = picture(number, width, height)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format=how.pixels, dst_colorspace=matrix, dst_color_range=int(stream.codec_context.color_range)
            )
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def colour_film(path: Path, coding: str, **how: Any) -> Path:
    """As `film`: four frames of `still`."""
    return film(path, coding, frames=4, picture=lambda number, width, height: still(width, height), **how)


def prepare(record: Record) -> None:
    """Makes the set once, before sections are timed that work on it."""
    start = time.perf_counter()
    paths = clips_like_ssv2(record)
    record.fact("videos", len(paths))
    record.fact("megabytes", sum(path.stat().st_size for path in paths) / 1e6)
    record.fact("seconds to make them", time.perf_counter() - start)


def like_ssv2(record: Record) -> Path:
    """The folder of a synthetic set coded as SSv2's clips are: VP9, 427x240, one key frame. Made once for all sections."""
    from ssv2rt.core.recipes import Synthetic
    from ssv2rt.dataset.synthetic import is_complete, synthesize

    cores = os.cpu_count() or 1
    spec = Synthetic(clips=160 if cores >= 8 else 60, width=427, height=240, frames=(40, 56))
    if record.quick:  # NVDEC takes no VP9 under 128x128
        spec = Synthetic(clips=30, width=171, height=128, frames=(10, 14))
    folder = record.work / "like-ssv2"
    if not is_complete(folder):
        synthesize(folder, spec, key_frames="first", workers=min(cores, spec.clips))
    return folder


def clips_like_ssv2(record: Record) -> list[Path]:
    """The videos of `like_ssv2`, in order."""
    return sorted((like_ssv2(record) / "videos").iterdir())
