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
from ssv2rt.training.confusion import confusions, per_class_results, read_confusion, write_confusion
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
    settings, best = run.recipe().train, run.best_epoch
    title = title_of(run.name, "validation", matrix)
    if best:
        title += f" after epoch {best} of {settings.epochs}" + (", the best" if settings.epochs > 1 else "")
    draw_curves(
        read_metrics(run.metrics_file), folder / "curves", settings, title=title, classes=len(labels), best=best
    )
    _draw(matrix, labels, folder, title)
    print_worst_classes(matrix, labels)
    return folder


def title_of(run: str, split: str, matrix: np.ndarray) -> str:
    """The title of the figures of a run: run, split, clips and top-1."""
    clips, correct = int(matrix.sum()), int(matrix.trace())
    kind = "" if split == "all" else f"{split} "
    return f"{run}: {clips:,} {kind}clips, top-1 {100 * correct / max(1, clips):.1f}%"


def write_evaluation(folder: Path, evaluation: Evaluation, labels: Sequence[str], *, run: str, split: str) -> None:
    """Writes and draws the confusion matrix of an evaluation, and prints what is confused. The caller holds a lock.

    Args:
        folder: made if it is missing.
        evaluation: with its confusion matrix.
        labels: class names.
        run: name of the run, for the titles.
        split: what was evaluated.

    Raises:
        UserError: the folder cannot be written.
    """
    assert evaluation.confusion is not None
    with os_errors_as_user_errors(f"cannot write to '{folder}'", "mend that, or choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_partial_files(folder)
        write_confusion(folder / "confusion.csv", evaluation.confusion, labels)
        _draw(evaluation.confusion, labels, folder, title_of(run, split, evaluation.confusion))
    print_confusions(evaluation.confusion, labels)


def _draw(matrix: np.ndarray, labels: Sequence[str], folder: Path, title: str) -> None:
    draw_confusion(matrix, labels, folder / "confusion", title)
    draw_worst_classes(matrix, labels, folder / "worst-classes", title)


def print_worst_classes(matrix: np.ndarray, labels: Sequence[str], most: int = 5) -> None:
    """Prints the classes with the lowest recall, and what is most often confused, to stderr."""
    worst = [result for result in per_class_results(matrix, labels)[:most] if result.recall < 100]
    table = _table("worst classes", "recall", "clips")
    for result in worst:
        table.add_row(printable(result.label), f"{result.recall:.1f}%", str(result.clips))
    _console().print(table if worst else f"all {matrix.sum():,} clips are right")
    print_confusions(matrix, labels, most)


def print_confusions(matrix: np.ndarray, labels: Sequence[str], most: int = 5) -> None:
    """Prints what is most often confused to stderr; nothing if all is right."""
    if found := confusions(matrix, labels, most):
        table = _table("most confused: true class", "predicted as", "clips")
        for label, predicted, wrong, clips in found:
            table.add_row(printable(label), printable(predicted), f"{wrong} of {clips}")
        _console().print(table)


def _console() -> Console:
    return Console(stderr=True, highlight=False, markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False)
    for column in columns:
        number = column in ("clips", "recall")
        table.add_column(column, justify="right" if number else "left", ratio=None if number else 1)
    return table
