"""Summary of a run: tables of the worst classes in the terminal, and figures in the folder of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ssv2rt.core.atomic_files import remove_all_partial_files
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.log import printable
from ssv2rt.core.run_folders import Run
from ssv2rt.report.plots import draw_confusion, draw_curves, draw_worst_classes
from ssv2rt.training.confusion import confused_pairs, per_class_results, read_confusion, write_confusion
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.metrics_log import read_metrics


def summarize(run: Run, labels: Sequence[str]) -> Path:
    """Draws the learning curves and the confusion matrix of the best epoch of a run, and prints the worst classes.

    Returns:
        The folder of the figures.

    Raises:
        UserError: the run has no confusion matrix, or one of other classes.
    """
    folder = run.path / "summary"
    try:
        matrix = read_confusion(run.confusion_file, labels)
    except (OSError, ValueError) as error:
        raise UserError(f"run '{run.path}' has no results to summarize: {error}") from None
    folder.mkdir(exist_ok=True)
    draw_curves(read_metrics(run.metrics_file), folder / "curves", run.recipe().train)
    _draw(matrix, labels, folder)
    print_worst_classes(matrix, labels)
    return folder


def write_evaluation(folder: Path, evaluation: Evaluation, labels: Sequence[str]) -> None:
    """Writes and draws the confusion matrix of an evaluation, and prints the worst classes. The caller holds a lock.

    Raises:
        UserError: the folder cannot be written.
    """
    assert evaluation.confusion is not None
    with os_errors_as_user_errors(f"cannot write to '{folder}'", "mend that, or choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_partial_files(folder)
        write_confusion(folder / "confusion.csv", evaluation.confusion, labels)
        _draw(evaluation.confusion, labels, folder)
    print_worst_classes(evaluation.confusion, labels)


def _draw(matrix: np.ndarray, labels: Sequence[str], folder: Path) -> None:
    draw_confusion(matrix, labels, folder / "confusion")
    draw_worst_classes(matrix, labels, folder / "worst-classes")


def print_worst_classes(matrix: np.ndarray, labels: Sequence[str], most: int = 5) -> None:
    """Prints the classes with the lowest recall and the most confused pairs of classes to stderr."""
    console = Console(stderr=True, highlight=False, markup=False)
    labels = [printable(label) for label in labels]
    table = _table("worst classes", "recall", "clips", "predicted as")
    for result in per_class_results(matrix, labels)[:most]:
        table.add_row(result.label, f"{result.recall:.1f}%", str(result.clips), result.confused_with)
    console.print(table)
    if pairs := confused_pairs(matrix, labels, most):
        table = _table("most confused", "predicted as second", "second as first", "second")
        for pair in pairs:
            table.add_row(
                pair.first, str(pair.first_predicted_as_second), str(pair.second_predicted_as_first), pair.second
            )
        console.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False)
    table.add_column(first, ratio=3)
    for number, column in enumerate(columns, start=1):
        last = number == len(columns)
        table.add_column(column, justify="left" if last else "right", ratio=3 if last else None)
    return table
