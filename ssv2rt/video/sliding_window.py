"""Clips of time windows that slide over a video of any length: one pass, every frame decoded once, bounded memory.

    time        0    1    2    3    4    5    6    7    8
    frames      |. . .|. . . . .|. . .|. . . . . . . . .      window = 4, hop = 2, T = 4
    window 0    [^    ^    ^    ^   )
    window 1              [ ^    ^    ^    ^  )
    window 2                        [ ^    ^    ^    ^  )

A clip is T positions in its window (see `sampling`). A position shows the last frame whose time is not later; that is known
when the next frame is decoded, so one frame is always held back. It is cropped when the first position needs it.

Letters: V temporal clips, S spatial crops, T frames.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np

from ssv2rt.core.recipes import Clip
from ssv2rt.video.container import CLIP_ERRORS, BadVideo, as_bad, open_video, orientation, stops_at_damage
from ssv2rt.video.crop_scale import CropScaler
from ssv2rt.video.crops import uniform_crops
from ssv2rt.video.declared_size import ends_early
from ssv2rt.video.sampling import frame_positions
from ssv2rt.video.storage import VideoSource
from ssv2rt.video.timed_frames import SECOND, TimedFrames

SHORTEST = 0.001
"""Seconds: the shortest window and hop."""


@dataclass(frozen=True, slots=True, repr=False)
class TimeWindow:
    """A time window of a video, and its clips."""

    number: int
    """Index k from 0; the window starts at k * hop."""
    start: float
    """Seconds from the first frame."""
    end: float
    """Seconds from the first frame: start + window, or the end of the video if that is earlier."""
    frames: int
    """Number of frames with start <= time < end; 0 where one frame is shown throughout."""
    clips: np.ndarray | None
    """uint8 RGB (V * S, T, size, size, 3): clip `v * S + s` has the v-th temporal clip and the s-th spatial crop. None where
    frames of the window are damaged."""

    def __repr__(self) -> str:
        shape = "none" if self.clips is None else self.clips.shape
        return f"TimeWindow({self.number}, {self.start:g} to {self.end:g} s, {self.frames} frames, clips {shape})"


def slide(
    source: VideoSource,
    clip: Clip,
    *,
    window: float,
    hop: float,
    threads: int = 1,
    decoded: Callable[[int], None] = lambda frames: None,
) -> Iterator[TimeWindow]:
    """Yields the windows of a video in order, each as soon as a frame behind it is decoded.

    Windows start at 0, hop, 2 * hop, ... The first that reaches the end of the video is the last, and is cut short there;
    a video that is shorter than a window has one, of its own length. Memory holds a frame or
    two and the clips of window / hop + 1 open windows.

    Windows with a damaged frame have no clips. They go on at the next key frame, see `timed_frames`.

    The places of the last window are spread over what there is of it, as far as the header declares how long the video is.
    Where it declares nothing (a WebM that was written live), or too little, they are spread over a whole window, and those
    beyond the end show the last frame. A header that declares too little is not believed: windows go on to the last frame.

    Where a video is no longer than a window, its clips are those of `decode_clips` for `source.evaluation_request`, if its
    frames are evenly spaced or `clip.timing` is 'time', and no place is within a container's rounding (a millisecond in
    WebM) of where a frame appears.

    Args:
        source: the video.
        clip: what the network sees. `stride`, and the rules that count frames, refer to frames of `rate` or, with
            `timing = "index"`, of the video's average rate.
        window: seconds, at least 0.001.
        hop: seconds from one window's start to the next, at least 0.001. What is between windows, where it is larger than
            `window`, is decoded and not shown.
        threads: of the decoder. Clips do not depend on it; which word a damaged video gets may, for of damage in its last
            packets several threads tell only that frames are missing.
        decoded: called with the number of decoded frames after each one, since a window may take long.

    Raises:
        ValueError: `window` or `hop` is too short, or infinite; before anything is opened.
        BadVideo: while it is iterated: no frame can be decoded, or 'truncated' after the last window of a file that is
            shorter than it declares.
    """
    for name, value in (("window", window), ("hop", hop)):
        if not SHORTEST <= value < math.inf:
            raise ValueError(f"{name} = {value}: it must be at least {SHORTEST} seconds")
    if threads < 1:
        raise ValueError(f"threads = {threads}: at least 1")
    return _slide(source, clip, window, hop, threads, decoded)


def _slide(
    source: VideoSource, clip: Clip, window: float, hop: float, threads: int, decoded: Callable[[int], None]
) -> Iterator[TimeWindow]:
    strip: _Windows | None = None
    try:
        with open_video(source) as container:
            timed_frames = TimedFrames(container, threads)
            for number, (time, frame) in enumerate(timed_frames.frames()):
                decoded(number + 1)
                if strip is None:
                    assert frame is not None  # a gap is behind a frame
                    strip = _Windows(frame, timed_frames, clip, window, hop)
                yield from strip.until(time)
                strip.take(frame)
            assert strip is not None  # or `frames` has raised
            if ends_early(source):
                yield from strip.until(timed_frames.end + timed_frames.slack)
                raise BadVideo("truncated")
            declared = timed_frames.declared
            if declared and stops_at_damage(
                source, container, timed_frames.stream, timed_frames.end / SECOND, timed_frames.offset
            ):
                yield from strip.until(timed_frames.end)
                strip.take(None)
                timed_frames.end = declared
            yield from strip.until(timed_frames.end - timed_frames.slack - 1)
            yield from strip.last(timed_frames.end)
    except CLIP_ERRORS as error:
        raise as_bad(error, begun=strip is not None) from None


class _Windows:
    """The open windows, and the frame that is held back.

    Args:
        first: first frame; crops are computed from its size.
        timed_frames: its rate, and when it should end.
        clip: what the network sees.
        window: seconds.
        hop: seconds.
    """

    def __init__(self, first: av.VideoFrame, timed_frames: TimedFrames, clip: Clip, window: float, hop: float) -> None:
        self._clip, self._window, self._hop, self._film = clip, window, hop, timed_frames
        self._rate = clip.rate if clip.timing == "time" else float(timed_frames.rate)
        size = (first.height, first.width) if orientation(first)[0] else (first.width, first.height)
        spatial_crops = uniform_crops(width=size[0], height=size[1], share=clip.center_crop, count=clip.views[1])
        self._crop_scaler = CropScaler(spatial_crops, size, clip.size)
        self._shown: _Picture | None = None  # in a gap, such as before a first frame that is not at 0
        self._open: deque[_Open] = deque()
        self._next = 0  # number of the window that is opened next

    def until(self, time: int) -> Iterator[TimeWindow]:
        """Shows the held frame until `time`, and yields the windows that end by then."""
        while True:  # one window after the other, for a frame may be shown through many
            if self._open and self._open[0].end <= time:
                window = self._open.popleft()
                yield window.given(window.whole, self._shown, window.end)
            elif round(self._next * self._hop * SECOND) <= time:
                self._open.append(self._opened(self._next))
                self._next += 1
            else:
                break
        for window in self._open:
            if self._shown is None:
                window.damaged |= window.start < time
            else:
                for filling in window.fillings:
                    filling.show(self._shown, time)

    def take(self, frame: av.VideoFrame | None) -> None:
        """Holds the next frame, which is shown from the time of the last `until`. None is a gap."""
        self._shown = None if frame is None else _Picture(frame, self._crop_scaler, self._clip)
        if frame is not None:
            for window in self._open:
                window.frames += 1

    def last(self, end: int) -> Iterator[TimeWindow]:
        """Yields the window that contains the end of the video, if there is one."""
        if self._open:
            window, declared = self._open[0], self._film.declared
            believed = window.short and declared and end <= declared + 2 * self._film.usual
            filling = window.short if window.short and believed else window.whole
            yield window.given(filling, self._shown, min(window.end, end))

    def _opened(self, number: int) -> _Open:
        start = round(number * self._hop * SECOND)
        end = start + round(self._window * SECOND)
        declared = self._film.declared
        cut_short = declared is not None and start < declared < end
        return _Open(
            number,
            start,
            end,
            whole=_Filling(self._clip, start, end, self._rate),
            short=_Filling(self._clip, start, declared, self._rate) if declared and cut_short else None,
        )


class _Picture:
    """The held frame, which is cropped when its crops are needed first."""

    def __init__(self, frame: av.VideoFrame, crop_scaler: CropScaler, clip: Clip) -> None:
        self._frame, self._crop_scaler, self._clip = frame, crop_scaler, clip
        self._cut: np.ndarray | None = None

    @property
    def spatial_crops(self) -> np.ndarray:
        """uint8 (S, size, size, 3)"""
        if self._cut is None:
            self._cut = np.empty((self._clip.views[1], self._clip.size, self._clip.size, 3), np.uint8)
            self._crop_scaler.cut(self._frame, self._cut)
        return self._cut


class _Filling:
    """The clips of a window, which fill up from its start to its end.

    Args:
        clip: what the network sees.
        start: of the window in microseconds.
        end: the same.
        rate: frames per second that `clip.stride`, and the rules that count frames, refer to.
    """

    def __init__(self, clip: Clip, start: int, end: int, rate: float) -> None:
        temporal_clips, spatial_crops = clip.views
        self.clips = np.empty((temporal_clips, spatial_crops, clip.frames, clip.size, clip.size, 3), np.uint8)
        seconds = np.stack(
            [
                frame_positions(
                    clip.sampling,
                    extent=(end - start) / SECOND,
                    length=clip.frames,
                    stride=clip.stride,
                    rate=rate,
                    view=moment,
                    views=temporal_clips,
                )
                for moment in range(temporal_clips)
            ]
        )
        place = start + np.minimum(np.rint(seconds * SECOND).astype(np.int64), end - start - 1)
        order = np.argsort(place, axis=None, kind="stable")
        self._places: list[int] = place.ravel()[order].tolist()
        self._moment, self._frame = np.divmod(order, clip.frames)  # where each place is in `clips`
        self._done = 0

    def show(self, picture: _Picture, until: int) -> None:
        """Puts the picture in the places before `until` that are empty."""
        while self._done < len(self._places) and self._places[self._done] < until:
            self.clips[self._moment[self._done], :, self._frame[self._done]] = picture.spatial_crops
            self._done += 1


@dataclass(slots=True)
class _Open:
    """A window that has begun. Times are in microseconds."""

    number: int
    start: int
    end: int
    whole: _Filling
    """Clips from all of it."""
    short: _Filling | None
    """Clips from what there should be of it, where the video should end within it."""
    frames: int = 0
    damaged: bool = False

    @property
    def fillings(self) -> list[_Filling]:
        return [self.whole, self.short] if self.short else [self.whole]

    def given(self, filling: _Filling, shown: _Picture | None, end: int) -> TimeWindow:
        """The window with its clips, of which `shown` is the last frame; None in a gap."""
        clips = None
        if shown is not None and not self.damaged:
            filling.show(shown, self.end)
            clips = filling.clips.reshape(-1, *filling.clips.shape[2:])
        return TimeWindow(self.number, self.start / SECOND, end / SECOND, self.frames, clips)
