"""Windows that slide over videos, through an engine: a row for each window, and one where a video breaks off."""

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
from ssv2rt.scoring.row import LAST, WINDOW, Row, row_of
from ssv2rt.scoring.scorer import Task
from ssv2rt.scoring.segments import Windows
from ssv2rt.video.container import CLIP_ERRORS, is_process_error, process_error, reason_of
from ssv2rt.video.sliding_window import TimeWindow, slide

_AHEAD = 2
"""Windows of a video that are made before they are asked for."""
_SIGN = 1.0
"""Seconds after which it is said that the work goes on."""
_PER_DECODER = 4
"""Threads of a decoder: a single long video should not wait for one, and many at once keep all cores busy anyway."""


class WindowScorer:
    """Scores windows of videos with an engine, several videos at a time.

    Args:
        predictor: the engine.
        data: threads.
        clip: what is looked at in a window.
        windows: how they slide.
    """

    videos = 1
    """In a batch."""

    def __init__(self, predictor: Predictor, *, data: Data, clip: Clip, windows: Windows) -> None:
        self._predictor, self._clip, self._windows = predictor, clip, windows
        threads = data.threads or cores()
        self._at_once = max(1, threads // _PER_DECODER)
        self._threads = min(threads, _PER_DECODER)
        self._group = max(1, predictor.batch // (clip.views[0] * clip.views[1]))
        # Short videos have a window each, so that many of them are in the engine.
        self.batches_ahead = self._at_once + (predictor.in_flight + 1) * self._group + 2
        """Videos that keep it busy."""

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        """The rows of videos, in order, in parts; now and then an empty part, as a sign that the work goes on."""
        tasks = iter(task for batch in batches for task in batch)
        readers: deque[_WindowReader] = deque()
        computing: deque[tuple[list[_WindowClip], Wait]] = deque()
        group: list[_WindowClip] = []
        more, heard = True, time.monotonic()
        try:
            while True:
                while more and len(readers) < self._at_once:
                    if (task := next(tasks, None)) is None:
                        more = False
                    else:
                        readers.append(self._start_reader(task))
                if not readers:
                    break
                piece = readers[0].next()
                # The windows of a group may each come soon, and all of them together late.
                if piece is None or time.monotonic() - heard > _SIGN:
                    heard = time.monotonic()
                    yield []
                if piece is None:
                    continue
                if piece.last:
                    readers.popleft()
                group.append(piece)
                if len(group) == self._group:
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
        made = [piece.made.clips for piece in group if piece.made]
        clips = torch.from_numpy(np.concatenate(made)) if made else torch.empty(0, dtype=torch.uint8)
        return self._predictor.start(clips.to(self._predictor.device), len(made))

    def _finish(self, group: list[_WindowClip], wait: Wait) -> Iterator[list[tuple[int, Row]]]:
        """The rows of some pieces, those of each video together."""
        labels = iter(wait())
        part: list[tuple[int, Row]] = []
        for piece in group:
            number, video = piece.task
            row: Row = {WINDOW: piece.number, "start": round(piece.number * self._windows.hop, 6), LAST: piece.last}
            if piece.made:
                row |= {"end": piece.made.end, "frames": piece.made.frames, **next(labels)}
            else:
                row |= {"status": f"error: {piece.reason}"}
            part.append((number, row_of(video.name, row)))
            if piece.last:
                yield part
                part = []
        if part:
            yield part


@dataclass(frozen=True)
class _WindowClip:
    """A window, or what is wrong in its place."""

    task: Task
    number: int
    made: TimeWindow | None
    reason: str
    last: bool
    """Of its video."""


class _WindowReader:
    """A video whose windows are made by a thread of its own."""

    def __init__(self, task: Task, clip: Clip, windows: Windows, threads: int) -> None:
        self._task = task
        self._made: queue.Queue[_WindowClip | Exception] = queue.Queue(_AHEAD)
        self._stopped = False
        self.frames = 0
        """Decoded so far."""
        self._seen = 0
        threading.Thread(target=self._run, args=(clip, windows, threads), daemon=True).start()

    def next(self) -> _WindowClip | None:
        """The next window; None as a sign that frames are being decoded, though none has been finished for a while.

        Raises:
            UserError: it is not the video that cannot be read.
            Exception: whatever else the thread has met.
        """
        while True:
            try:
                piece = self._made.get(timeout=_SIGN)
            except queue.Empty:
                if self._seen != self.frames:
                    self._seen = self.frames
                    return None
                continue
            if isinstance(piece, Exception):
                raise piece
            return piece

    def stop(self) -> None:
        self._stopped = True

    def _run(self, clip: Clip, windows: Windows, threads: int) -> None:
        with contextlib.suppress(_Stopped):
            self._make(clip, windows, threads)

    def _make(self, clip: Clip, windows: Windows, threads: int) -> None:
        video, before, number = self._task[1], None, 0
        try:
            made = slide(
                video.place, clip, window=windows.seconds, hop=windows.hop, threads=threads, decoded=self._decoded
            )
            for window in made:
                if before:
                    self._put(_WindowClip(self._task, before.number, before, "", last=False))
                before, number = window, window.number + 1
            assert before
            self._put(_WindowClip(self._task, before.number, before, "", last=True))
        except CLIP_ERRORS as error:
            if is_process_error(error):
                self._put(process_error(video.place, error))
                return
            if before:
                self._put(_WindowClip(self._task, before.number, before, "", last=False))
            self._put(_WindowClip(self._task, number, None, reason_of(error), last=True))
        except Exception as error:  # no error of a video: it is for the thread that waits to raise it
            self._put(error)

    def _put(self, piece: _WindowClip | Exception) -> None:
        while not self._stopped:
            try:
                return self._made.put(piece, timeout=1.0)
            except queue.Full:
                continue
        raise _Stopped

    def _decoded(self, frames: int) -> None:
        if self._stopped:
            raise _Stopped
        self.frames = frames


class _Stopped(BaseException):
    """Nobody waits any more."""
