"""Figures of a run: learning curves, confusion matrix, and the classes with the lowest recall."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.core.log import printable
from ssv2rt.core.train_settings import Train
from ssv2rt.training.confusion import per_class_results
from ssv2rt.training.optimizer import Schedule

BLUE, RED, GOLD, GRAY = "#4477aa", "#ee6677", "#ccbb44", "#999999"
"""Safe for color-blind readers (Paul Tol's bright scheme)."""
_MOST_POINTS = 2000
"""Points of the curve of the learning rate."""
_MAX_LABELED_CLASSES = 40
"""Up to this many classes, a confusion matrix shows their names."""


def save_figure(figure: Figure, path: Path) -> None:
    """Writes PNG and SVG files atomically. `path` has no suffix."""
    for kind in ("png", "svg"):
        with atomic_file(path.with_name(f"{path.name}.{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=130)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path, settings: Train) -> None:
    """Draws loss, accuracy and learning rate over the epochs.

    Args:
        lines: the lines of metrics.jsonl.
        path: of the figure, without suffix.
        settings: the recipe's `[train]`, which the learning rate of each optimizer step follows from.
    """
    figure = new_figure(12, 3.8)
    loss, accuracy, rate = figure.subplots(1, 3)
    steps = [line for line in lines if _has_numbers(line, "loss", "learning_rate")]
    epochs = [line for line in lines if _has_numbers(line, "train_loss", "train_top1") and "validation" in line]
    epochs = [line for line in epochs if _has_numbers(line["validation"], "top1", "top5", "loss")]
    per_epoch = max((line["update"] / line["epoch"] for line in epochs if line["epoch"]), default=1.0)
    epoch_numbers = [line["epoch"] for line in epochs]
    if steps:
        loss.plot([s["update"] / per_epoch for s in steps], [s["loss"] for s in steps], color=BLUE, alpha=0.3, lw=1)
    loss.plot(epoch_numbers, [line["train_loss"] for line in epochs], "o-", color=BLUE, ms=3, label="training")
    loss.plot(epoch_numbers, [line["validation"]["loss"] for line in epochs], "o-", color=RED, ms=3, label="validation")
    loss.set_ylabel("loss, nats")
    accuracy.plot(
        epoch_numbers, [line["train_top1"] for line in epochs], "o-", color=BLUE, ms=3, label="top-1, training"
    )
    for name, style in (("top1", "o-"), ("top5", "o--")):
        values = [line["validation"][name] for line in epochs]
        if name == "top5" and all(value == 100 for value in values):
            continue  # of five classes or fewer, every clip is among the first five
        accuracy.plot(epoch_numbers, values, style, color=RED, ms=3, label=f"top-{name[3:]}, validation")
    accuracy.set_ylim(0, 102)
    accuracy.set_ylabel("percent")
    at, rates = _rates([*steps, *epochs], settings, per_epoch)
    rate.plot((at + 1) / per_epoch, rates, ".-" if len(at) < 40 else "-", color=GRAY)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    for axes in (loss, accuracy):
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _rates(lines: Sequence[Mapping[str, Any]], settings: Train, per_epoch: float) -> tuple[np.ndarray, np.ndarray]:
    """The learning rates of the optimizer steps done, or of some of many, by the schedule of the recipe: steps and rates.

    The schedule does not know how many processes trained together: it is scaled to the largest learning rate in the log.
    """
    schedule = Schedule(settings, max(1, round(per_epoch)))
    logged = [
        (line["learning_rate"], int(line["update"]) - 1)
        for line in lines
        if _has_numbers(line, "learning_rate", "update")
        and 1 <= line["update"] <= schedule.steps
        and 0 < line["learning_rate"] < math.inf
    ]
    if not logged:
        return np.zeros(0), np.zeros(0)
    last = max(step for _, step in logged)
    at = np.unique(np.linspace(0, last, min(last + 1, _MOST_POINTS)).astype(np.int64))
    largest, step = max(logged)
    scale = largest / schedule(step) if schedule(step) else 1.0
    return at, np.array([scale * schedule(step) for step in at.tolist()])


def _has_numbers(line: object, *names: str) -> bool:
    return isinstance(line, Mapping) and all(isinstance(line.get(name), (int, float)) for name in names)


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix in percent of each true class, with class names if there are few enough to read.

    Args:
        matrix: int (K, K), number of clips by true class (rows) and by predicted class (columns).
        labels: K class names.
        path: of the figure, without suffix.
    """
    clips = matrix.sum(1, keepdims=True)
    shares = np.divide(100 * matrix, clips, out=np.full(matrix.shape, np.nan), where=clips > 0)
    named = len(labels) <= _MAX_LABELED_CLASSES
    figure = new_figure(5.5 + 0.3 * len(labels), 4 + 0.3 * len(labels)) if named else new_figure(10, 9)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    if named:
        names = [_shown(label, 44) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(labels)), names, fontsize=8)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            value = shares[row, column]
            color = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("predicted" if named else "predicted class")
    axes.set_ylabel("true" if named else "true class")
    axes.set_title("Percent of the clips of each class", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6)
    save_figure(figure, path)


def _shown(label: str, width: int) -> str:
    """A label, cut to a width, in which nothing is a control character or a formula for Matplotlib."""
    return textwrap.shorten(printable(label), width, placeholder=" ...").replace("$", r"\$")


def draw_worst_classes(matrix: np.ndarray, labels: Sequence[str], path: Path, most: int = 20) -> None:
    """Draws the recall of the worst classes, each with its most frequent wrong prediction. See `draw_confusion`."""
    results = per_class_results(matrix, labels)[:most]
    figure = new_figure(11, 1.4 + 0.36 * len(results))
    axes = figure.subplots()
    rows = range(len(results))
    axes.barh(rows, [r.recall for r in results], color=BLUE, height=0.7)
    for row, result in zip(rows, results, strict=True):
        name = _shown(result.confused_with, 52)
        text = f"{result.confused_clips} of {result.clips} predicted as: {name}" if name else f"all {result.clips}"
        inside = result.recall > 55
        axes.text(
            result.recall + (-1 if inside else 1),
            row,
            text,
            va="center",
            ha="right" if inside else "left",
            fontsize=7.5,
            color="white" if inside else "black",
        )
    names = [_shown(r.label, 56) for r in results]
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("recall, percent")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
