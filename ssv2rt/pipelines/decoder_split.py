"""Which clips PyAV decodes although DALI could: a share of them, and always the same ones."""

from __future__ import annotations

import os
import zlib

from ssv2rt.video.storage import VideoLocation

STEPS = 8
"""A measured share is rounded to multiples of 1 / STEPS; below half a step it is 0."""


def is_decoded_by_pyav(path: VideoLocation | str, share: float) -> bool:
    """Whether PyAV decodes a video. It depends on the hash of the file's name alone.

    Args:
        path: of the video.
        share: 0 to 1, of all videos.
    """
    name = os.fsencode(os.path.basename(str(path)))
    return zlib.crc32(name) < share * 2**32


def balanced_share(*, graph: float, cpu: float) -> float:
    """The share of PyAV with which both ways are done at the same time, in steps of 1 / `STEPS`.

    Args:
        graph: clips a second where the graph decodes all of them.
        cpu: clips a second where PyAV does.
    """
    return round(STEPS * cpu / (graph + cpu)) / STEPS if graph + cpu else 0.0
