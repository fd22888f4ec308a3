"""The report of an output of `ssv2rt score`: counts, a gallery of some rows, errors by reason, windows on a timeline."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssv2rt.core.progress import tracked
from ssv2rt.core.recipes import Clip
from ssv2rt.report.html.moments import Moment, frames_of
from ssv2rt.report.html.strips import Strips
from ssv2rt.scoring.merge import read_output
from ssv2rt.scoring.metadata import read_metadata
from ssv2rt.scoring.row import EXPECTED, Row
from ssv2rt.video.container import OK

Section = dict[str, Any]

MOST = 500
"""Rows that are shown with their frames."""
_MOST_ERRORS, _NAMES_PER_REASON = 200, 3
_MOST_VIDEOS, _MOST_WINDOWS, _MOMENTS = 50, 1000, 6
"""Videos with windows, and for each, the windows that are drawn and those that have frames."""


@dataclass
class _Counts:
    """What all rows come to."""

    classes: frozenset[str] | None
    """Names of the network's classes; None if they are not known."""
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    probability: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of the probabilities, by label."""
    reasons: Counter[str] = field(default_factory=Counter)
    first: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    known: int = 0
    """Rows whose expected label is a class of the network, as `score` counts them: error rows are wrong."""
    right: int = 0
    known_errors: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        ok = row["status"] == OK
        if expected := row.get(EXPECTED):
            known = self.classes is None or expected in self.classes
            self.known += known
            self.right += known and expected == row.get("label")
            self.known_errors += known and not ok
        if not ok:
            reason = row["status"].removeprefix("error: ")
            self.reasons[reason] += 1
            if len(self.first[reason]) < _NAMES_PER_REASON and row["video"] not in self.first[reason]:
                self.first[reason].append(row["video"])
            return
        self.labels[row["label"]] += 1
        self.probability[row["label"]] += row["probability"]


def report_of_predictions(path: Path, *, clips: int = MOST) -> dict[str, Any]:
    """The content of a report about an output of scoring.

    Args:
        path: a .csv, .parquet or .jsonl file. Its videos are read again where it names them.
        clips: how many rows are shown with their frames at most.

    Raises:
        UserError: it is no such file, or damaged.
    """
    columns, read = read_output(path)
    rows = tracked(read, f"reading {path.name}", "rows")
    metadata = read_metadata(path) or {}
    clip = Clip(**metadata["clip"]) if metadata else Clip()
    counts, strips = _Counts(frozenset(metadata["labels"]) if metadata else None), Strips()
    shown = (
        _timelines(rows, counts, clip, strips) if "start" in columns else _gallery(rows, counts, clip, strips, clips)
    )
    sections: list[Section] = [{"type": "facts", "title": "Result", "rows": _facts(path, counts, metadata)}]
    if counts.labels:
        sections.append(_labels(counts))
    if counts.reasons:
        sections.append(_errors(counts))
    return {"title": f"Predictions {path.name}", "subtitle": str(path), "sections": sections + shown}


def _facts(path: Path, counts: _Counts, metadata: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = [["rows", f"{counts.rows:,}"], ["errors", f"{counts.reasons.total():,}"]]
    if counts.known:
        share = 100 * counts.right / counts.known
        wrong = (
            f"; {counts.known_errors:,} of them have error rows, which count as wrong" if counts.known_errors else ""
        )
        rows.append(["top-1", f"{share:.2f}% of {counts.known:,} labeled videos{wrong}"])
    if metadata:
        rows.append(["network", metadata.get("model", "")])
        for engine in metadata["engines"]:
            rows.append(
                ["engine", ", ".join(str(engine[key]) for key in ("name", "backend", "target") if engine.get(key))]
            )
        rows.append(["classes", len(metadata["labels"])])
    return rows


def _labels(counts: _Counts) -> Section:
    return {
        "type": "table",
        "title": "Predicted classes",
        "columns": [
            {"name": "class", "kind": "text"},
            {"name": "rows", "kind": "number"},
            {"name": "share", "kind": "percent"},
            {"name": "mean probability", "kind": "percent"},
        ],
        "rows": [
            [label, count, count / counts.rows, counts.probability[label] / count]
            for label, count in counts.labels.most_common()
        ],
    }


def _errors(counts: _Counts) -> Section:
    return {
        "type": "table",
        "title": "Errors by reason",
        "columns": [
            {"name": "reason", "kind": "text"},
            {"name": "rows", "kind": "number"},
            {"name": "first", "kind": "text"},
        ],
        "rows": [[reason, count, ", ".join(counts.first[reason])] for reason, count in counts.reasons.most_common()],
    }


def _gallery(rows: Iterable[Row], counts: _Counts, clip: Clip, strips: Strips, most: int) -> list[Section]:
    mistakes: list[tuple[float, int, Row]] = []
    others: list[tuple[int, int, Row]] = []
    errors: list[Row] = []
    for number, row in enumerate(rows):
        counts.add(row)
        if row["status"] != OK:
            errors += [row] if len(errors) < _MOST_ERRORS else []
            continue
        if row.get(EXPECTED) and row[EXPECTED] != row["label"]:
            _push(mistakes, (row["probability"], number, row), most)
        else:
            _push(others, (-zlib.crc32(row["video"].encode(errors="replace")), number, row), most)
    # Half of the clips are mistakes, and more where there are too few others.
    wrong = [row for _, _, row in sorted(mistakes, reverse=True)][: max((most + 1) // 2, most - len(others))]
    rest = [row for _, _, row in sorted(others, reverse=True)][: most - len(wrong)]
    chosen = wrong + sorted(rest, key=lambda row: row["probability"])
    pictures = frames_of([(row["video"], None, None) for row in chosen], clip)
    clips = [
        _clip(row) | {"strip": None if frames is None else strips.of(frames)}
        for row, frames in zip(chosen, pictures, strict=True)
    ]
    clips += [_clip(row) | {"strip": None} for row in errors]
    good = counts.rows - counts.reasons.total()
    some = len(chosen) < good
    note = f"{len(chosen):,} of {good:,} scored videos: " if some else f"All {good:,} scored videos: "
    parts = [f"{len(wrong):,} mistakes, the most confident first"] if wrong else []
    if rest:
        first = f"then {len(rest):,} others, " if wrong else ""
        parts.append(f"{first}{'chosen by a hash of their names, ' if some else ''}the least sure first")
    note += f"{'; '.join(parts) or 'none'}."
    if errors:
        note += f" {len(errors)} of {counts.reasons.total():,} error rows follow."
    if missing := sum(frames is None for frames in pictures):
        note += f" {missing} videos are not where the file names them any more, and have no pictures."
    if strips.refused:
        note += f" {strips.refused} have no pictures, to keep the file small."
    return [{"type": "gallery", "title": "Videos", "what": "videos", "note": note, "clips": clips}]


def _push(heap: list[Any], item: Any, most: int) -> None:
    """Keeps the `most` largest items in a heap."""
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif most:
        heapq.heappushpop(heap, item)


def _clip(row: Row) -> dict[str, object]:
    ok = row["status"] == OK
    top, rank = [], 1
    while (label := row.get("label" if rank == 1 else f"label_{rank}")) and ok:
        top.append([label, row["probability" if rank == 1 else f"probability_{rank}"]])
        rank += 1
    expected = row.get(EXPECTED) or None
    kind = "right" if expected == row.get("label") else "wrong"
    return {
        "video": row["video"],
        "status": row["status"],
        "kind": row["status"] if not ok else kind if expected else "scored",
        "expected": expected,
        "top": top or None,
    }


@dataclass
class _Windows:
    """Windows of a video: all of them, or evenly spaced ones if there are many."""

    kept: list[Row] = field(default_factory=list)
    step: int = 1
    """Each step-th window is kept."""
    count: int = 0

    def add(self, row: Row) -> None:
        if self.count % self.step == 0:
            self.kept.append(row)
        self.count += 1
        if len(self.kept) > _MOST_WINDOWS:
            self.kept, self.step = self.kept[::2], 2 * self.step

    def moments(self) -> list[Row]:
        """Windows whose frames are shown, from the first to the last."""
        good = [row for row in self.kept if row["status"] == OK]
        return [good[number] for number in np.linspace(0, len(good) - 1, min(_MOMENTS, len(good))).round().astype(int)]

    def content(self) -> dict[str, object]:
        """Windows as the page's script takes them: [start, end that is drawn, end, index of the name, probability]."""
        names: dict[tuple[bool, str], int] = {}
        windows: list[list[object]] = []
        end = 0.0
        for row, after in zip(self.kept, [*self.kept[1:], None], strict=True):
            # An error row without times is of the rest of the video.
            good, start = row["status"] == OK, float(row.get("start", end))
            end = float(row.get("end", start))
            # Windows overlap: each is drawn up to the beginning of the next one. Between windows that are kept, others are.
            until = end if after is None else after.get("start", end)
            until = until if self.step > 1 else min(until, end)
            name = names.setdefault((good, row["label"] if good else row["status"]), len(names))
            windows.append([start, until, end, name, row.get("probability")])
        return {"names": [{"name": name, "ok": good} for good, name in names], "windows": windows}


def _timelines(rows: Iterable[Row], counts: _Counts, clip: Clip, strips: Strips) -> list[Section]:
    by_video: dict[str, _Windows] = {}
    others = set()
    for row in rows:
        counts.add(row)
        if row["video"] in by_video or len(by_video) < _MOST_VIDEOS:
            by_video.setdefault(row["video"], _Windows()).add(row)
        else:
            others.add(row["video"])
    moments: list[Moment] = [
        (name, row["start"], row["end"]) for name, windows in by_video.items() for row in windows.moments()
    ]
    pictures = defaultdict(list)
    for (name, start, _), frames in zip(moments, frames_of(moments, clip), strict=True):
        pictures[name].append({"start": start, "strip": None if frames is None else strips.of(frames)})
    videos = [{"video": name, "moments": pictures[name], **windows.content()} for name, windows in by_video.items()]
    note = "Each stretch is a window, drawn up to the beginning of the next."
    if thinned := sum(windows.step > 1 for windows in by_video.values()):
        note += f" Of {thinned} videos with more than {_MOST_WINDOWS} windows, evenly spaced ones are drawn."
    if others:
        note += f" The first {len(by_video)} videos are shown, and {len(others):,} others are counted above."
    return [{"type": "timeline", "title": "Windows", "note": note, "videos": videos}]
