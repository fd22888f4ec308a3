"""A row of predictions: what it is called, which columns there are, and what is in them.

A row is a dictionary. On its way from the scorer to the output it also has keys that are no columns: `PATH`, and of a window
`WINDOW` and `LAST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssv2rt.dataset.listing import as_text

Row = dict[str, Any]
PATH = "path"
"""The key of a row's exact name; `video` is the same as text."""
WINDOW, LAST = "window", "last"
"""Keys of a window's number in its video, from 0, and of whether it is the last one there."""
EXPECTED = "expected"
"""The column of the right label."""
LOGITS, EMBEDDING = "logits", "embedding"
VECTORS = (LOGITS, EMBEDDING)
"""Columns with many numbers."""
SECONDS = ("start", "end")
"""Columns with the times of windows, in steps of microseconds."""
VECTOR = list
"""The type of a column's values where they are float32 numbers."""


def row_of(path: str, facts: Row) -> Row:
    """A row with the name of its video: as text, and exactly."""
    return {"video": as_text(path), PATH: path, **facts}


def columns(
    top_k: int,
    *,
    windows: bool = False,
    merged: bool = False,
    expected: bool = False,
    extra_columns: Sequence[str] = (),
) -> list[str]:
    """Names of the columns, in order.

    video, status, [start, end,] frames, [expected,] label, probability, label_2, probability_2, ..., [logits, embedding]

    Args:
        top_k: how many labels; 1 where windows are merged.
        windows: whether a row is a window.
        merged: whether a row is several windows: it has `windows` in the place of `frames`.
        expected: whether the right labels are known.
        extra_columns: of `VECTORS`.
    """
    names = ["video", "status"]
    if windows:
        names += ["start", "end"]
    names += ["windows" if merged else "frames"]
    if expected:
        names += [EXPECTED]
    for rank in range(1, top_k + 1):
        end = "" if rank == 1 else f"_{rank}"
        names += [f"label{end}", f"probability{end}"]
    return [*names, *extra_columns]


def kind_of(column: str) -> type:
    """The type of a column's values; `VECTOR` of float32 numbers."""
    if column in VECTORS:
        return VECTOR
    if column in ("frames", "windows"):
        return int
    return float if column in SECONDS or column.startswith("probability") else str
