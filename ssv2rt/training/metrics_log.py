"""The training log of a run: metrics.jsonl, and the trackers that get its lines, too."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.run_folders import Run
from ssv2rt.training.trackers import Tracker, flatten, try_tracker


class MetricsLog:
    """Appends metrics to metrics.jsonl; on resume, first drops the lines that are newer than the checkpoint.

    Args:
        run: where metrics.jsonl is written.
        epoch: number of complete epochs.
        update: number of optimizer steps so far. Lines of later steps are dropped, since those steps will be done again.
        trackers: what else gets the lines.
    """

    def __init__(self, run: Run, *, epoch: int, update: int, trackers: Sequence[Tracker] = ()) -> None:
        self._file = run.metrics_file
        if self._file.is_file():
            lines = read_metrics(self._file)
            # A validation line can be newer than the last checkpoint, if the process died between writing the two.
            kept = [x for x in lines if x["update"] <= update and ("validation" not in x or x["epoch"] <= epoch)]
            write_text(self._file, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._trackers = list(trackers)

    def write(self, *, epoch: float, update: int, **facts: Any) -> None:
        """Appends one line.

        Args:
            epoch: position in epochs, such as 1.5.
            update: number of optimizer steps so far.
            facts: numbers, or dicts of numbers.
        """
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "update": update, **facts}) + "\n")
        flat = flatten({"epoch": epoch, **facts})
        then = ", and gets no more metrics; training goes on, with metrics.jsonl"
        for tracker in list(self._trackers):
            if not try_tracker(tracker, partial(tracker.write, flat, update), then):
                self._trackers.remove(tracker)
                try_tracker(tracker, tracker.close, " when it was closed")

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            try_tracker(tracker, tracker.close, " when it was closed")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Lines that `MetricsLog` did not write are skipped; a missing file counts as empty."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # a crash can leave an incomplete line
            line = json.loads(text)
            if isinstance(line, dict) and {"epoch", "update"} <= line.keys() and _all_numbers(line):
                lines.append(line)
    return lines


def _all_numbers(line: Mapping[str, Any]) -> bool:
    """Whether a line has only numbers, and dicts of numbers, as `MetricsLog.write` writes them."""
    for name, value in line.items():
        nested = name not in ("epoch", "update") and isinstance(value, dict)
        for number in value.values() if nested else (value,):
            if not isinstance(number, (int, float)) or (abs(number) > sys.float_info.max and isinstance(number, int)):
                return False
    return True
