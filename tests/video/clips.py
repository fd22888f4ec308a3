"""Coded clips as SSv2 has them, with hidden pictures, and what a plain decoder makes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from ssv2rt.dataset.scenes import draw_clip
from ssv2rt.dataset.synthetic import encode_vp9, mux_webm

VP8_HIDDEN = Path(__file__).parents[1] / "data" / "vp8_hidden.webm"
"""64 packets, 60 frames. Made by `ffmpeg -f lavfi -i testsrc2=s=96x64:r=12:d=5 -c:v libvpx -b:v 40k -auto-alt-ref 1
-lag-in-frames 16 -arnr-maxframes 7`, in two passes."""
SHOW_AGAIN = b"\x88"
"""A VP9 packet of profile 0 that shows the picture in slot 0 of the references."""


def hidden_vp9(frames: int = 48, *, width: int = 427, height: int = 240, seed: int = 0) -> list[bytes]:
    """VP9 packets coded as SSv2's are: superframes with hidden pictures, and one key frame."""
    scene = draw_clip(np.random.default_rng(seed), seed % 3, frames, width, height)
    return encode_vp9(scene, "first")


def webm(packets: Sequence[bytes], width: int = 427, height: int = 240) -> bytes:
    """A file of such packets."""
    return mux_webm(list(packets), width, height, "first")


def decoded(data: bytes) -> list[np.ndarray]:
    """The luma, uint8 (H, W), of every frame that FFmpeg shows of a file with 8 bits and planes."""
    with av.open(io.BytesIO(data)) as container:
        return [luma(frame) for frame in container.decode(video=0)]


def luma(frame: av.VideoFrame) -> np.ndarray:
    """The first plane of a frame of 8 bits: uint8 (H, W)."""
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()
