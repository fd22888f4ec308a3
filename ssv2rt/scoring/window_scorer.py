"""Scores sliding windows of videos with an engine: one row for each window, and an error row where decoding fails."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.scoring.predictor import Predictor, Wait
from ssv2rt.scoring.row import IS_LAST, WINDOW, Row, named_row
from ssv2rt.scoring.scorer import Task
from ssv2rt.scoring.segments import Windows
from ssv2rt.video.container import CLIP_ERRORS, is_process_error, process_error, reason_of
from ssv2rt.video.sliding_window import TimeWindow, slide

_WINDOWS_AHEAD = 2
"""Windows that a reader prepares in advance."""
_HEARTBEAT_INTERVAL = 1.0
"""Seconds between heartbeats: empty results that tell the supervisor that the work goes on."""
_THREADS_PER_READER = 4
"""Decoder threads for each video. They speed up a single long video; with many videos all cores are busy anyway."""


class WindowScorer:
    """Scores sliding windows with an engine, decoding several videos at a time.

    Args:
        predictor: the engine.
        data: number of threads.
        clip: how a clip is sampled from a window.
        windows: length and hop of the windows.
    """

    videos = 1
    """Videos in a batch."""

    def __init__(self, predictor: Predictor, *, data: Data, clip: Clip, windows: Windows) -> None:
        self._predictor, self._clip, self._windows = predictor, clip, windows
        threads = data.threads or cores()
        self._max_readers = max(1, threads // _THREADS_PER_READER)
        self._threads = min(threads, _THREADS_PER_READER)
        self._windows_per_batch = max(1, predictor.batch // (clip.views[0] * clip.views[1]))
        # Short videos have one window each, so it takes many of them to fill the engine's batches.
        self.batches_ahead = self._max_readers + (predictor.in_flight + 1) * self._windows_per_batch + 2
        """Videos that keep the pipeline full."""

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        """Yields lists of (video number, row), in order. Some lists are empty: they are a heartbeat."""
        tasks = iter(task for batch in batches for task in batch)
        readers: deque[_WindowReader] = deque()
        computing: deque[tuple[list[_WindowClip], Wait]] = deque()
        group: list[_WindowClip] = []
        more, last_heartbeat = True, time.monotonic()
        try:
            while True:
                while more and len(readers) < self._max_readers:
                    if (task := next(tasks, None)) is None:
                        more = False
                    else:
                        readers.append(self._start_reader(task))
                if not readers:
                    break
                window_clip = readers[0].next()
                # Each window of a batch may be quick, but the batch as a whole slow.
                if window_clip is None or time.monotonic() - last_heartbeat > _HEARTBEAT_INTERVAL:
                    last_heartbeat = time.monotonic()
                    yield []
                if window_clip is None:
                    continue
                if window_clip.last:
                    readers.popleft()
                group.append(window_clip)
                if len(group) == self._windows_per_batch:
                    computing.append((group, self._start(group)))
                    group = []
                    if len(computing) >= self._predictor.in_flight:
                        yield from self._finish(*computing.popleft())
            if group:
                computing.append((group, self._start(group)))
            while computing:
                yield from self._finish(*computing.popleft())
        finally:
            for reader in readers:
                reader.stop()

    def _start_reader(self, task: Task) -> _WindowReader:
        return _WindowReader(task, self._clip, self._windows, self._threads)

    def _start(self, group: list[_WindowClip]) -> Wait:
        decoded = [window_clip.clips for window_clip in group if window_clip.clips is not None]
        clips = torch.from_numpy(np.concatenate(decoded)) if decoded else torch.empty(0, dtype=torch.uint8)
        return self._predictor.start(clips.to(self._predictor.device), len(decoded))

    def _finish(self, group: list[_WindowClip], wait: Wait) -> Iterator[list[tuple[int, Row]]]:
        """The rows of a batch, in one list for each video."""
        labels = iter(wait())
        part: list[tuple[int, Row]] = []
        for window_clip in group:
            number, video = window_clip.task
            row: Row = {
                WINDOW: window_clip.number,
                "start": round(window_clip.number * self._windows.hop, 6),
                IS_LAST: window_clip.last,
            }
            if window_clip.window:
                row |= {"end": window_clip.window.end}
            if window_clip.window and window_clip.clips is not None:
                row |= {"frames": window_clip.window.frames, **next(labels)}
            else:
                row |= {"status": f"error: {window_clip.reason or 'corrupt'}"}
            part.append((number, named_row(video.name, row)))
            if window_clip.last:
                yield part
                part = []
        if part:
            yield part


@dataclass(frozen=True)
class _WindowClip:
    """A window of a video, which may be damaged, or the reason why the rest of the video could not be decoded."""

    task: Task
    number: int
    window: TimeWindow | None
    reason: str
    last: bool
    """Whether it is the last one of its video."""

    @property
    def clips(self) -> np.ndarray | None:
        """What the engine gets: see `TimeWindow.clips`."""
        return self.window.clips if self.window else None


class _WindowReader:
    """Decodes the windows of one video in a thread."""

    def __init__(self, task: Task, clip: Clip, windows: Windows, threads: int) -> None:
        self._task = task
        self._queue: queue.Queue[_WindowClip | Exception] = queue.Queue(_WINDOWS_AHEAD)
        self._stopped = False
        self.frames = 0
        """Number of frames decoded so far."""
        self._seen = 0
        threading.Thread(target=self._run, args=(clip, windows, threads), daemon=True).start()

    def next(self) -> _WindowClip | None:
        """Waits for the next window. Returns None as a heartbeat if frames are being decoded but no window is ready yet.

        Raises:
            UserError: the machine, not the video, is the cause of an error, such as too many open files.
            Exception: any other error in the thread.
        """
        while True:
            try:
                window_clip = self._queue.get(timeout=_HEARTBEAT_INTERVAL)
            except queue.Empty:
                if self._seen != self.frames:
                    self._seen = self.frames
                    return None
                continue
            if isinstance(window_clip, Exception):
                raise window_clip
            return window_clip

    def stop(self) -> None:
        self._stopped = True

    def _run(self, clip: Clip, windows: Windows, threads: int) -> None:
        with contextlib.suppress(_ReaderStopped):
            self._make(clip, windows, threads)

    def _make(self, clip: Clip, windows: Windows, threads: int) -> None:
        video, before, number = self._task[1], None, 0
        try:
            decoded_windows = slide(
                video.location, clip, window=windows.seconds, hop=windows.hop, threads=threads, decoded=self._decoded
            )
            for window in decoded_windows:
                if before:
                    self._put(_WindowClip(self._task, before.number, before, "", last=False))
                before, number = window, window.number + 1
            assert before
            self._put(_WindowClip(self._task, before.number, before, "", last=True))
        except CLIP_ERRORS as error:
            if is_process_error(error):
                self._put(process_error(video.location, error))
                return
            if before:
                self._put(_WindowClip(self._task, before.number, before, "", last=False))
            self._put(_WindowClip(self._task, number, None, reason_of(error), last=True))
        except Exception as error:  # not an error of the video: `next` raises it
            self._put(error)

    def _put(self, window_clip: _WindowClip | Exception) -> None:
        while not self._stopped:
            try:
                return self._queue.put(window_clip, timeout=1.0)
            except queue.Full:
                continue
        raise _ReaderStopped

    def _decoded(self, frames: int) -> None:
        if self._stopped:
            raise _ReaderStopped
        self.frames = frames


class _ReaderStopped(BaseException):
    """Ends the thread of a reader that was stopped."""
