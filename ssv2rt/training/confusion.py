"""What a model takes for what: its confusion matrix, on disk and as what is worst about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ssv2rt.core.atomic_files import atomic_file


@dataclass(frozen=True)
class ClassFigures:
    """How one class is recognised."""

    label: str
    clips: int
    recall: float
    """Percent of its clips that are recognised."""
    mistaken_for: str
    """The class that its other clips are taken for most; empty if there are none."""
    mistaken: int
    """How many of them are."""


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are taken for each other."""

    first: str
    second: str
    first_for_second: int
    """Clips of the first that are taken for the second."""
    second_for_first: int
    share: float
    """Percent of the clips of both that this is."""


def class_figures(matrix: np.ndarray, labels: Sequence[str]) -> list[ClassFigures]:
    """Every class that has clips, the worst first.

    Args:
        matrix: int (K, K), clips by true class (rows) and by predicted class (columns).
        labels: K names.
    """
    found = []
    for number in np.flatnonzero(matrix.sum(1)).tolist():
        row = matrix[number].copy()
        clips, right = int(row.sum()), int(row[number])
        row[number] = 0
        worst = int(row.argmax())
        mistaken_for = labels[worst] if row[worst] else ""
        found.append(ClassFigures(labels[number], clips, 100 * right / clips, mistaken_for, int(row[worst])))
    return sorted(found, key=lambda figures: (figures.recall, -figures.clips, figures.label))


def confused_pairs(matrix: np.ndarray, labels: Sequence[str], most: int = 10) -> list[ConfusedPair]:
    """The pairs of classes with the most clips that are taken for the other's, the worst first; as `class_figures`."""
    both = np.triu(matrix + matrix.T, 1)
    clips = matrix.sum(1)
    order = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = []
    for a, b in zip(*np.unravel_index(order, both.shape), strict=True):
        if both[a, b]:
            share = 100 * float(both[a, b]) / int(clips[a] + clips[b])
            pairs.append(ConfusedPair(labels[a], labels[b], int(matrix[a, b]), int(matrix[b, a]), share))
    return pairs


def write_confusion(path: Path, matrix: np.ndarray, labels: Sequence[str]) -> None:
    """Writes a CSV file `label,predicted,clips`, with a row for every pair of classes that occurs."""
    rows, columns = np.nonzero(matrix)
    names = pa.array(labels, pa.string())
    table = pa.table(
        {
            "label": names.take(pa.array(rows)),
            "predicted": names.take(pa.array(columns)),
            "clips": matrix[rows, columns],
        }
    )
    with atomic_file(path) as temporary:
        pyarrow.csv.write_csv(table, temporary)


def read_confusion(path: Path, labels: Sequence[str]) -> np.ndarray:
    """int64 (K, K): what `write_confusion` has written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, or of other classes.
    """
    number = {label: at for at, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    try:
        types = {"label": pa.string(), "predicted": pa.string(), "clips": pa.int64()}
        table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
        for row in table.to_pylist():
            matrix[number[row["label"]], number[row["predicted"]]] = row["clips"]
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"'{path}' is not the confusion matrix of these classes: {error}") from None
    return matrix
