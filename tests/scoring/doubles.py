"""Test doubles of scorers. A video's name tells them how to misbehave, as a decoder does on a hostile video."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import Worker
from ssv2rt.scoring.row import IS_LAST, WINDOW, Row, named_row
from ssv2rt.scoring.supervisor import Task
from ssv2rt.scoring.video_sources import Video

PREDICTION: Row = {"status": "ok", "label": "a", "probability": 0.5}


class Deadly(Worker[Video, Row]):
    """Yields a row for each video, but aborts, hangs, etc. on a video whose name says so."""

    def __init__(self, *, videos: int = 8, log: str = "") -> None:
        super().__init__(self.score, videos, 5)
        self._log = log
        if log:
            with open(log, "a") as file:
                file.write("start\n")

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        waiting: list[list[Task]] = []
        for batch in batches:  # several in flight, as in the real scorer
            waiting.append(batch)
            if len(waiting) > 3:
                yield self._rows(waiting.pop(0))
        for batch in waiting:
            yield self._rows(batch)

    def _rows(self, batch: list[Task]) -> list[tuple[int, Row]]:
        for _, video in batch:
            name = Path(video.name).name
            if "abort" in name:
                os.abort()
            if "segfault" in name:
                ctypes.string_at(0)
            if "hang" in name:
                time.sleep(3600)
            if "storage" in name:
                raise UserError("the storage is gone")
            if "parent" in name:
                os.kill(os.getppid(), 9)
                time.sleep(3600)
            if "kill" in name:
                os.kill(os.getpid(), 9)
            if "exit" in name:
                os._exit(0)
            if "flaky" in name and self._log and Path(self._log).read_text().count("start") < 2:
                os.abort()
        return [(number, named_row(video.name, PREDICTION | {"frames": len(video.name)})) for number, video in batch]


class Restless(Worker[Video, Row]):
    """Yields ten windows for each video; `fits` makes its process die after each few of them, `abort` at the sixth."""

    def __init__(self) -> None:
        super().__init__(self.score, 1, 4)

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        for ((number, video),) in batches:
            for window in range(10):
                yield [
                    (
                        number,
                        named_row(
                            video.name, PREDICTION | {"start": 0.0, "end": 1.0, WINDOW: window, IS_LAST: window == 9}
                        ),
                    )
                ]
                if "abort" in video.name and window == 5:
                    os.abort()
                if "fits" in video.name and window in (2, 5, 8):
                    try:
                        os.close(os.open(f"{video.name}-{window}", os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        continue  # the crash does not recur
                    time.sleep(0.2)  # until the pool has what was sent
                    os.abort()


class Refusing:
    """Raises UserError in its constructor."""

    def __init__(self) -> None:
        raise UserError("the engine is for another machine")


class Stillborn:
    """Aborts in its constructor."""

    def __init__(self) -> None:
        os.abort()


class Starved(Deadly):
    """Behaves as if the limit on open files were reached at the eighth video."""

    def _rows(self, batch: list[Task]) -> list[tuple[int, Row]]:
        if any(Path(video.name).stem == "8" for _, video in batch):
            raise UserError("cannot read '8.webm': Too many open files")
        return super()._rows(batch)


class Slow(Deadly):
    """Sleeps before each batch, and reports missing files."""

    def _rows(self, batch: list[Task]) -> list[tuple[int, Row]]:
        time.sleep(0.2)
        lost = {"status": "error: missing"}
        return [
            (
                number,
                row if os.path.exists(getattr(video.location, "file", row["path"])) else named_row(row["path"], lost),
            )
            for (number, row), (_, video) in zip(super()._rows(batch), batch, strict=True)
        ]


def aborting(*, log: str, **options: object) -> Any:
    """The real scorer, patched to abort when DALI gets a video with `abort` in its name, as a bug in NVIDIA's parser would."""
    from ssv2rt.pipelines.dali_graph import ClipGraph
    from ssv2rt.pipelines.decoder_trust import DecoderTrust
    from ssv2rt.scoring.worker import make_scorer

    feed, compare = ClipGraph.feed, DecoderTrust._compare

    def crash(self: Any, clips: Any) -> None:
        if any(clip.handed is not None and "abort" in str(clip.request.path) for clip in clips):
            os.abort()
        feed(self, clips)

    def noted(self: Any, *arguments: Any) -> Any:
        with open(log, "a") as file:
            file.write("compared\n")
        return compare(self, *arguments)

    ClipGraph.feed, DecoderTrust._compare = crash, noted  # type: ignore[method-assign]
    return make_scorer(**options)  # type: ignore[arg-type]


def aborting_in_windows(**options: object) -> Any:
    """The real scorer of windows, patched to abort in the decoder before the eighth window of a video named `abort`."""
    from ssv2rt.scoring import window_scorer
    from ssv2rt.scoring.worker import make_scorer

    slide = window_scorer.slide

    def crash(location: Any, *arguments: Any, **more: Any) -> Any:
        for window in slide(location, *arguments, **more):
            if "abort" in str(location) and window.number == 7:
                os.abort()
            yield window

    window_scorer.slide = crash
    return make_scorer(**options)  # type: ignore[arg-type]
