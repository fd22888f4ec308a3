"""Windows that slide over a video, and the segments that those of one label make.

windows     |a . . . . .|
                  |a . . . . .|
                        |b . . . . .|
segments    |a . . . . . . . .|b . . . . |        they meet midway between the middles of two windows
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssv2rt.core.errors import UsageError
from ssv2rt.scoring.row import LAST, PATH, Row
from ssv2rt.video.container import OK

SHORTEST = 0.01
"""Seconds of a window and of a hop."""


@dataclass(frozen=True)
class Windows:
    """How windows slide."""

    seconds: float
    hop: float
    merge: bool = False
    """Whether neighbours of the same label become one row."""

    def __post_init__(self) -> None:
        for name, value in (("--window", self.seconds), ("--hop", self.hop)):
            if not SHORTEST <= value <= 86_400:
                raise UsageError(f"{name} {value:g}: give seconds, from {SHORTEST} to 86400")
        if self.merge and self.hop > self.seconds:
            raise UsageError(
                f"--merge with --hop {self.hop:g} above --window {self.seconds:g}: there is time between windows"
            )

    @classmethod
    def of(cls, seconds: float, hop: float | None, merge: bool) -> Windows:
        """Where no hop is given, it is half a window."""
        return cls(seconds, max(SHORTEST, seconds / 2) if hop is None else hop, merge)


@dataclass
class _Segment:
    """Neighbouring windows of one label, so far."""

    row: Row
    probabilities: list[float] = field(default_factory=list)
    middle: float = 0.0
    """Of the last window."""

    def take(self, row: Row) -> None:
        self.probabilities.append(row["probability"])
        self.middle = (row["start"] + row["end"]) / 2
        self.row |= {"end": row["end"], LAST: row.get(LAST, True)}

    def made(self) -> Row:
        return {
            **self.row,
            "windows": len(self.probabilities),
            "probability": sum(self.probabilities) / len(self.probabilities),
        }


def segments(rows: Iterator[Row]) -> Iterator[Row]:
    """Joins the windows of each video that have the same label first.

    Args:
        rows: of windows; those of one video in their order, other videos' may be between them.

    Returns:
        A row for each segment, with `windows`, how many it is made of, and the mean of their probabilities. A window with an
        error stays as it is.
    """
    under_way: dict[str, _Segment] = {}
    for row in rows:
        name = row[PATH]
        before = under_way.pop(name, None)
        if row["status"] != OK:
            if before:
                yield before.made()
            yield row
            continue
        if before and before.row["label"] == row["label"]:
            segment = before
        else:
            segment = _Segment({key: row[key] for key in ("video", PATH, "status", "start", "label")})
            if before:
                border = round((before.middle + (row["start"] + row["end"]) / 2) / 2, 6)
                before.row["end"] = segment.row["start"] = border
                yield before.made()
        segment.take(row)
        if row.get(LAST, True):
            yield segment.made()
        else:
            under_way[name] = segment
