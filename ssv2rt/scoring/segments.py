"""Sliding windows, and segments: consecutive windows of a video with the same top-1 label, merged into one row.

windows     |a . . . . .|
                  |a . . . . .|
                        |b . . . . .|
segments    |a . . . . . . . .|b . . . . |        the boundary is midway between the centers of two windows
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssv2rt.core.errors import UsageError
from ssv2rt.scoring.row import IS_LAST, PATH, Row
from ssv2rt.video.container import OK

SHORTEST_SECONDS = 0.01
"""Shortest window and shortest hop."""


@dataclass(frozen=True)
class Windows:
    """Length and hop of sliding windows, in seconds."""

    seconds: float
    hop: float
    merge: bool = False
    """Whether consecutive windows with the same label are merged into a segment."""

    def __post_init__(self) -> None:
        for name, value in (("--window", self.seconds), ("--hop", self.hop)):
            if not SHORTEST_SECONDS <= value <= 86_400:
                raise UsageError(f"{name} {value:g}: give seconds, from {SHORTEST_SECONDS} to 86400")
        if self.merge and self.hop > self.seconds:
            raise UsageError(
                f"--merge with --hop {self.hop:g} above --window {self.seconds:g}: that leaves gaps between windows"
            )

    @classmethod
    def of(cls, seconds: float, hop: float | None, merge: bool) -> Windows:
        """The default hop is half a window."""
        return cls(seconds, max(SHORTEST_SECONDS, seconds / 2) if hop is None else hop, merge)


@dataclass
class _Segment:
    """Consecutive windows with the same label, so far."""

    row: Row
    probabilities: list[float] = field(default_factory=list)
    middle: float = 0.0
    """Center of the last window, in seconds."""

    def add(self, row: Row) -> None:
        self.probabilities.append(row["probability"])
        self.middle = (row["start"] + row["end"]) / 2
        self.row |= {"end": row["end"], IS_LAST: row.get(IS_LAST, True)}

    def to_row(self) -> Row:
        return {
            **self.row,
            "windows": len(self.probabilities),
            "probability": sum(self.probabilities) / len(self.probabilities),
        }


def segments(rows: Iterator[Row]) -> Iterator[Row]:
    """Merges consecutive windows of a video that have the same top-1 label.

    Args:
        rows: rows of windows. Those of one video are in order, but videos may be interleaved.

    Returns:
        A row for each segment, with the number of its windows in `windows` and their mean probability. A window with an error
        is passed on unchanged.
    """
    open_segments: dict[str, _Segment] = {}
    for row in rows:
        name = row[PATH]
        before = open_segments.pop(name, None)
        if row["status"] != OK:
            if before:
                yield before.to_row()
            yield row
            continue
        if before and before.row["label"] == row["label"]:
            segment = before
        else:
            segment = _Segment({key: row[key] for key in ("video", PATH, "status", "start", "label")})
            if before:
                boundary = round((before.middle + (row["start"] + row["end"]) / 2) / 2, 6)
                before.row["end"] = segment.row["start"] = boundary
                yield before.to_row()
        segment.add(row)
        if row.get(IS_LAST, True):
            yield segment.to_row()
        else:
            open_segments[name] = segment
