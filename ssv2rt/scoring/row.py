"""The schema of rows of predictions.

A row is a dictionary. Between the scorer and the output it also has keys that are not columns: `PATH`, and for a sliding
window `WINDOW` and `IS_LAST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssv2rt.dataset.listing import escape_non_utf8

Row = dict[str, Any]
PATH = "path"
"""Key of the video's exact name. The column `video` holds it as printable text."""
WINDOW, IS_LAST = "window", "last"
"""Keys of a window's number within its video, from 0, and of whether it is the video's last one."""
EXPECTED = "expected"
"""The column of the correct label."""
LOGITS, EMBEDDING = "logits", "embedding"
VECTORS = (LOGITS, EMBEDDING)
"""Columns with vectors."""
SECONDS = ("start", "end")
"""Columns with a window's times in seconds, rounded to microseconds."""
PREDICTED = ("label", "probability")
"""Columns that all rows have but those with an error. Rows of windows also have `SECONDS`."""
VECTOR = list
"""The type of a column whose values are float32 vectors."""


def named_row(path: str, facts: Row) -> Row:
    """A row with `facts` and the name of its video, as text and exactly."""
    return {"video": escape_non_utf8(path), PATH: path, **facts}


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
        top_k: how many labels; 1 if windows are merged.
        windows: whether a row is a sliding window.
        merged: whether a row is a segment of several windows: it has the column `windows` instead of `frames`.
        expected: whether the correct labels are known.
        extra_columns: some of `VECTORS`.
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


def column_type(column: str) -> type:
    """The type of a column's values; `VECTOR` for float32 vectors."""
    if column in VECTORS:
        return VECTOR
    if column in ("frames", "windows"):
        return int
    return float if column in SECONDS or column.startswith("probability") else str
