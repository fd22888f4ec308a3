"""Small pictures of a video, as HTML that needs no other file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ssv2rt.core.recipes import Clip
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.container import CLIP_ERRORS
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from ssv2rt.video.storage import VideoLocation

_COUNT, _SIZE = 4, 96


def thumbnails(location: VideoLocation) -> str:
    """Four frames of a video side by side, as an <img> element; empty if it cannot be read any more."""
    clip = Clip(frames=_COUNT, size=_SIZE, center_crop=1.0)
    try:
        request = evaluation_request("", location, probe(location), clip=clip)
        frames = decode_clips(location, request, size=_SIZE)[0]
    except CLIP_ERRORS:
        return ""
    content = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(content, "JPEG", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}'>"
