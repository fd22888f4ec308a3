"""Confusion matrices: recall of each class, the most confused pairs of classes, and a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ssv2rt.core.atomic_files import atomic_file


@dataclass(frozen=True)
class ClassResult:
    """How well one class is recognized."""

    label: str
    clips: int
    recall: float
    """Percent of its clips that are predicted correctly."""
    confused_with: str
    """The most frequent wrong prediction for its clips; empty if there is none."""
    confused_clips: int
    """Number of clips with that wrong prediction."""


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that the model confuses with each other."""

    first: str
    second: str
    first_predicted_as_second: int
    """Clips of the first class that are predicted as the second."""
    second_predicted_as_first: int
    share: float
    """Confused clips in percent of all clips of both classes."""


def per_class_results(matrix: np.ndarray, labels: Sequence[str]) -> list[ClassResult]:
    """Results of every class that has clips, lowest recall first.

    Args:
        matrix: int (K, K), number of clips by true class (rows) and by predicted class (columns).
        labels: K class names.
    """
    found = []
    for number in np.flatnonzero(matrix.sum(1)).tolist():
        row = matrix[number].copy()
        clips, correct = int(row.sum()), int(row[number])
        row[number] = 0
        worst = int(row.argmax())
        confused_with = labels[worst] if row[worst] else ""
        found.append(ClassResult(labels[number], clips, 100 * correct / clips, confused_with, int(row[worst])))
    return sorted(found, key=lambda figures: (figures.recall, -figures.clips, figures.label))


def confused_pairs(matrix: np.ndarray, labels: Sequence[str], most: int = 10) -> list[ConfusedPair]:
    """Pairs of classes with the most clips that are predicted as the other class, most first; at most `most` pairs."""
    confused = np.triu(matrix + matrix.T, 1)
    clips = matrix.sum(1)
    pairs = []
    for a, b in _largest(confused, most):
        share = 100 * float(confused[a, b]) / int(clips[a] + clips[b])
        pairs.append(ConfusedPair(labels[a], labels[b], int(matrix[a, b]), int(matrix[b, a]), share))
    return pairs


def confusions(matrix: np.ndarray, labels: Sequence[str], most: int) -> list[tuple[str, str, int, int]]:
    """What is most often predicted in place of a true class, most clips first; at most `most` of these.

    Args:
        matrix: int (K, K), number of clips by true class (rows) and by predicted class (columns).
        labels: K class names.
        most: how many.

    Returns:
        True class, predicted class, number of these clips, and number of all clips of the true class.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    clips = matrix.sum(1)
    return [(labels[a], labels[b], int(wrong[a, b]), int(clips[a])) for a, b in _largest(wrong, most)]


def _largest(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Row and column of the largest numbers of a matrix above 0, the largest first."""
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    places = (divmod(int(place), counts.shape[1]) for place in order)
    return [(row, column) for row, column in places if counts[row, column]]


def write_confusion(path: Path, matrix: np.ndarray, labels: Sequence[str]) -> None:
    """Writes a CSV file with the columns label, predicted and clips. Pairs of classes without clips are left out."""
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
    """Reads a file of `write_confusion` as int64 (K, K).

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a confusion matrix, or it has other classes.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    try:
        types = {"label": pa.string(), "predicted": pa.string(), "clips": pa.int64()}
        table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
        for row in table.to_pylist():
            matrix[numbers[row["label"]], numbers[row["predicted"]]] = row["clips"]
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"'{path}' is not the confusion matrix of these classes: {error}") from None
    return matrix
