"""What a run has come to: tables in the terminal, and pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ssv2rt.core.errors import UserError
from ssv2rt.core.run_folders import Run
from ssv2rt.report.plots import draw_confusion, draw_curves, draw_worst
from ssv2rt.training.confusion import class_figures, confused_pairs, read_confusion, write_confusion
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.metrics_log import read_metrics


def summarize(run: Run, labels: Sequence[str]) -> Path:
    """Draws how a run has learned and what its best epoch takes for what, and prints what is worst.

    Returns:
        The folder of the pictures.

    Raises:
        UserError: the run has no confusion matrix of these classes.
    """
    folder = run.path / "summary"
    try:
        matrix = read_confusion(run.confusion_file, labels)
    except (OSError, ValueError) as error:
        raise UserError(f"run '{run.path}' has nothing to sum up: {error}") from None
    folder.mkdir(exist_ok=True)
    draw_curves(read_metrics(run.metrics_file), folder / "curves")
    _draw(matrix, labels, folder)
    show_worst(matrix, labels)
    return folder


def write_out(folder: Path, evaluation: Evaluation, labels: Sequence[str]) -> None:
    """Writes and draws what an evaluation has found to be taken for what, into a folder, and prints what is worst.

    Raises:
        UserError: the folder cannot be written.
    """
    assert evaluation.confusion is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_confusion(folder / "confusion.csv", evaluation.confusion, labels)
        _draw(evaluation.confusion, labels, folder)
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror}; choose another --out") from None
    show_worst(evaluation.confusion, labels)


def _draw(matrix: np.ndarray, labels: Sequence[str], folder: Path) -> None:
    draw_confusion(matrix, labels, folder / "confusion")
    draw_worst(matrix, labels, folder / "worst-classes")


def show_worst(matrix: np.ndarray, labels: Sequence[str], most: int = 5) -> None:
    """Prints, to stderr, the worst classes and the pairs that are taken for each other most."""
    console = Console(stderr=True, highlight=False)
    table = _table("worst classes", "recall", "clips", "taken for")
    for one in class_figures(matrix, labels)[:most]:
        table.add_row(one.label, f"{one.recall:.1f}%", str(one.clips), one.mistaken_for)
    console.print(table)
    if pairs := confused_pairs(matrix, labels, most):
        table = _table("most confused", "taken for the second", "for the first", "and")
        for pair in pairs:
            table.add_row(pair.first, str(pair.first_for_second), str(pair.second_for_first), pair.second)
        console.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False)
    table.add_column(first, ratio=3)
    for number, column in enumerate(columns, start=1):
        last = number == len(columns)
        table.add_column(column, justify="left" if last else "right", ratio=3 if last else None)
    return table
