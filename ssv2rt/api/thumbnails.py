"""Small pictures of a video, as HTML that needs no other file."""

from __future__ import annotations

from ssv2rt.core.recipes import Clip
from ssv2rt.report.html.moments import read_frames
from ssv2rt.report.html.strips import Strips
from ssv2rt.video.storage import VideoLocation

_COUNT = 4


def thumbnails(location: VideoLocation) -> str:
    """Four frames of a video side by side, as an <img> element; empty if it cannot be read any more."""
    frames = read_frames(location, Clip(frames=_COUNT, center_crop=1.0))
    strip = None if frames is None else Strips().of(frames)
    return f"<img alt='' src='{strip['image']}'>" if strip else ""
