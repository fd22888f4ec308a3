"""The documented preprocessing, by PyAV alone."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def preprocess(path: Path, *, frames: int, size: int, share: float) -> np.ndarray:
    """uint8 RGB (T, S, S, 3): the center view of a video with square pixels and no rotation."""
    with av.open(str(path)) as container:
        shown = list(container.decode(video=0))
    graph, (width, height) = av.filter.Graph(), (shown[0].width, shown[0].height)
    side = round(min(width, height) * share)
    left, top = (width - side) // 2 // 2 * 2, (height - side) // 2 // 2 * 2
    graph.link_nodes(
        graph.add_buffer(
            template=None, width=width, height=height, format=shown[0].format, time_base=shown[0].time_base
        ),
        graph.add("crop", f"{side}:{side}:{left}:{top}:exact=1"),
        graph.add("scale", f"{size}:{size}:flags=bilinear+full_chroma_int"),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ).configure()
    clip = []
    for place in range(frames):
        graph.push(shown[int((place + 0.5) * len(shown) / frames)])
        clip.append(graph.vpull().to_ndarray())
    return np.stack(clip)
