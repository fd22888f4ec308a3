"""Frames of videos that were scored, read again for a report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ssv2rt.core.cores import cores
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Clip
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.report.html.strips import FRAMES, SIDE
from ssv2rt.scoring.video_sources import Video, videos_at_path
from ssv2rt.video.container import CLIP_ERRORS
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from ssv2rt.video.sampling import frames_at_time
from ssv2rt.video.storage import VideoLocation

Moment = tuple[str, float | None, float | None]
"""Name of a video, and start and end of a window in seconds; None for the whole video."""


def frames_of(moments: Sequence[Moment], clip: Clip) -> list[np.ndarray | None]:
    """Frames of each moment: uint8 RGB (T, SIDE, SIDE, 3); None where the video cannot be read any more."""
    places = places_of({name for name, _, _ in moments})
    with ThreadPoolExecutor(cores()) as pool, Progress("reading frames", len(moments), unit="clips") as progress:

        def read(moment: Moment) -> np.ndarray | None:
            name, start, end = moment
            frames = read_frames(places.get(name), clip, start, end)
            progress.add(1)
            return frames

        return list(pool.map(read, moments))


def places_of(names: set[str]) -> dict[str, VideoLocation]:
    """Where the videos of the names are: members of tar files are named after the tar file."""
    places: dict[str, VideoLocation] = {}
    tars: set[str] = set()
    for name in names:
        tar, found, _ = name.partition(".tar/")
        if found:
            tars.add(f"{tar}.tar")
        else:
            places[name] = Video.at(name).location
    for tar in tars:
        places |= {video.name: video.location for video, _ in videos_at_path(tar) if video.name in names}
    return places


def read_frames(
    place: VideoLocation | None, clip: Clip, start: float | None = None, end: float | None = None
) -> np.ndarray | None:
    """At most `FRAMES` frames of a video, or of a window of it in seconds, as `frames_of` gives them."""
    if place is None:
        return None
    small = clip.one_view().model_copy(update={"frames": min(clip.frames, FRAMES), "size": SIDE})
    try:
        info = probe(place)
        request = evaluation_request("", place, info, clip=small)
        if start is not None and end is not None and info.duration > 0:
            times = start + (np.arange(small.frames) + 0.5) * (end - start) / small.frames
            even = np.arange(info.frames) * (info.duration / info.frames)
            numbers = frames_at_time(times, even if info.times is None else info.times)
            request = replace(request, frames=numbers[None])
        return decode_clips(place, request, size=SIDE)[0]
    except CLIP_ERRORS:
        return None
