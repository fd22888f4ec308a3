"""The report of an output of `ssv2rt score`: counts, a gallery of some rows, errors by reason, windows on a timeline."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
_MOST_ERRORS, _NAMES_PER_REASON, _MOST_VIDEOS, _MOMENTS = 200, 3, 50, 6


@dataclass
class _Counts:
    """What all rows come to."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    probability: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of the probabilities, by label."""
    reasons: Counter[str] = field(default_factory=Counter)
    first: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    known: int = 0
    """Rows with an expected label."""
    right: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        if row["status"] != OK:
            reason = row["status"].removeprefix("error: ")
            self.reasons[reason] += 1
            self.first[reason] += [row["video"]] if len(self.first[reason]) < _NAMES_PER_REASON else []
            return
        self.labels[row["label"]] += 1
        self.probability[row["label"]] += row["probability"]
        if row.get(EXPECTED):
            self.known += 1
            self.right += row[EXPECTED] == row["label"]


def report_of_predictions(path: Path, *, clips: int = MOST) -> dict[str, Any]:
    """The content of a report about an output of scoring.

    Args:
        path: a .csv, .parquet or .jsonl file. Its videos are read again where it names them.
        clips: how many rows are shown with their frames at most.

    Raises:
        UserError: it is no such file, or damaged.
    """
    columns, rows = read_output(path)
    metadata = read_metadata(path) or {}
    clip = Clip(**metadata["clip"]) if metadata else Clip()
    counts, strips = _Counts(), Strips()
    shown = _windows(rows, counts, clip, strips) if "start" in columns else _gallery(rows, counts, clip, strips, clips)
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
        rows.append(["top-1", f"{share:.2f}% of {counts.known:,} labeled videos"])
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
            _push(mistakes, (row["probability"], number, row), most // 2)
        else:
            _push(others, (-zlib.crc32(row["video"].encode(errors="replace")), number, row), most)
    wrong = [row for _, _, row in sorted(mistakes, reverse=True)]
    rest = [row for _, _, row in sorted(others, reverse=True)][: most - len(wrong)]
    chosen = wrong + sorted(rest, key=lambda row: row["probability"])
    pictures = frames_of([(row["video"], None, None) for row in chosen], clip)
    clips = [
        _clip(row) | {"strip": None if frames is None else strips.of(frames)}
        for row, frames in zip(chosen, pictures, strict=True)
    ]
    clips += [_clip(row) | {"strip": None} for row in errors]
    good = counts.rows - counts.reasons.total()
    parts = [f"{len(chosen):,} of {good:,} scored videos" if len(chosen) < good else f"All {good:,} scored videos"]
    if wrong:
        parts.append(f"the {len(wrong)} most confident mistakes first")
    if len(chosen) < good:
        parts.append("the others chosen by a hash of their names")
    note = f"{', '.join(parts)}; then the least sure first."
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


def _windows(rows: Iterable[Row], counts: _Counts, clip: Clip, strips: Strips) -> list[Section]:
    by_video: dict[str, list[Row]] = {}
    others = set()
    for row in rows:
        counts.add(row)
        if row["video"] in by_video or len(by_video) < _MOST_VIDEOS:
            by_video.setdefault(row["video"], []).append(row)
        else:
            others.add(row["video"])
    moments: list[Moment] = []
    for name, windows in by_video.items():
        good = [window for window in windows if window["status"] == OK]
        step = max(1, len(good) // _MOMENTS)
        moments += [(name, window["start"], window["end"]) for window in good[::step][:_MOMENTS]]
    pictures = dict(zip(moments, frames_of(moments, clip), strict=True))
    videos = []
    for name, windows in by_video.items():
        starts = [window.get("start", 0.0) for window in windows]
        ends = [window.get("end", start) for window, start in zip(windows, starts, strict=True)]
        # Windows overlap: each is drawn up to the beginning of the next one.
        shown = [*starts[1:], ends[-1]]
        videos.append(
            {
                "video": name,
                "windows": [
                    {
                        "start": start,
                        "end": end,
                        "shown": min(until, end),
                        "status": window["status"],
                        "label": window.get("label"),
                        "probability": window.get("probability"),
                    }
                    for window, start, end, until in zip(windows, starts, ends, shown, strict=True)
                ],
                "moments": [
                    {"start": start, "strip": None if frames is None else strips.of(frames)}
                    for (video, start, _), frames in pictures.items()
                    if video == name
                ],
            }
        )
    note = "Each stretch is a window, drawn up to the beginning of the next."
    if others:
        note += f" The first {len(by_video)} videos are shown, and {len(others):,} others are counted above."
    return [{"type": "timeline", "title": "Windows", "note": note, "videos": videos}]
