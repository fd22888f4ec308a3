"""Decoders that count pictures as DALI's do, on a CPU: doubles of what runs on NVDEC, and of DALI's own CPU decoder."""

from __future__ import annotations

import io

import av
import numpy as np

from ssv2rt.pipelines.hand_over import Counting
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import read_pictures
from tests.video.clips import luma

LOOK_AHEAD = 8
BLACK = 16


def decode(file: bytes, positions: np.ndarray, counting: Counting) -> list[np.ndarray]:
    """The frames at some positions, rising, as a decoder finds them that counts so: luma, uint8 (H, W) each."""
    return by_shown(file, positions) if counting == "shown" else by_decoded(file, positions)


def by_shown(file: bytes, positions: np.ndarray) -> list[np.ndarray]:
    """Counts what comes out of the decoder."""
    with av.open(io.BytesIO(file)) as container:
        frames = [luma(frame) for frame in container.decode(video=0)]
    return [frames[at] if at < len(frames) else np.full_like(frames[0], BLACK) for at in positions]


def by_decoded(file: bytes, positions: np.ndarray) -> list[np.ndarray]:
    """Counts what goes into the decoder, as DALI 2.4's FramesDecoderGpu does.

    Each decoded picture has its packet's time, also a hidden one. Eight wait, and the one of the earliest time goes next, of
    equal times the one that came first. NumFrames is the count of packets, and what is at or above it is a black frame.
    """
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        codec = stream.codec_context.name
        packets = [packet for packet in container.demux(stream) if packet.size]
        pictures: list[tuple[int, np.ndarray]] = []
        shown: dict[int, np.ndarray] = {}
        for packet in packets:
            for frame in stream.codec_context.decode(packet):
                shown[frame.pts] = luma(frame)
        for frame in stream.codec_context.decode(None):
            shown[frame.pts] = luma(frame)
        blank = np.full_like(next(iter(shown.values())), BLACK)
        for packet in packets:
            parts = read_pictures(codec, bytes(packet)) if codec in WITH_HEADERS else [None]
            for part in parts:
                hidden = part is not None and not part.shown
                pictures.append((packet.pts, blank if hidden else shown[packet.pts]))
    waiting: list[tuple[int, np.ndarray]] = []
    out: list[np.ndarray] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == LOOK_AHEAD:
            out.append(waiting.pop(min(range(len(waiting)), key=lambda at: waiting[at][0]))[1])
    while waiting:
        out.append(waiting.pop(min(range(len(waiting)), key=lambda at: waiting[at][0]))[1])
    return [out[at] if at < len(packets) else blank for at in positions]
