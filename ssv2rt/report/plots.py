"""Figures of a run: learning curves, confusion matrix, and the classes with the lowest recall."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.core.log import printable
from ssv2rt.core.train_settings import Train
from ssv2rt.report.fonts import with_fonts
from ssv2rt.training.confusion import per_class_results
from ssv2rt.training.evaluate import top5_says_something
from ssv2rt.training.optimizer import Schedule

BLUE, RED, GOLD, GRAY = "#4477aa", "#ee6677", "#ccbb44", "#999999"
"""Safe for color-blind readers (Paul Tol's bright scheme)."""
_MOST_POINTS = 2000
"""Points of the curve of the learning rate."""
_MAX_NUMBERED_CLASSES, _MAX_NAMED_CLASSES = 40, 200
"""Up to so many classes, a confusion matrix has percentages in its cells, and names beside them."""
_FEW_EPOCHS, _MANY_EPOCHS = 3, 30
"""Up to so many, the points of epochs are large; above so many, there is only the line."""


def save_figure(figure: Figure, path: Path) -> None:
    """Writes PNG and SVG files atomically. `path` has no suffix."""
    with with_fonts(figure):
        for kind in ("png", "svg"):
            with atomic_file(path.with_name(f"{path.name}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, dpi=130)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def draw_curves(
    lines: Sequence[Mapping[str, Any]],
    path: Path,
    settings: Train,
    *,
    title: str,
    classes: int,
    best: int | None = None,
) -> None:
    """Draws loss, accuracy and learning rate over the epochs.

    Args:
        lines: the lines of metrics.jsonl.
        path: of the figure, without suffix.
        settings: the recipe's `[train]`, which the learning rate of each optimizer step follows from.
        title: what the figure is of.
        classes: number of classes.
        best: the best epoch.
    """
    figure = new_figure(12, 4.3)
    _title(figure, title)
    loss, accuracy, rate = figure.subplots(1, 3)
    lines = placed(lines)
    steps = [line for line in lines if _has_numbers(line, "loss", "learning_rate")]
    epochs = of_epochs(lines)
    per_epoch = max((line["update"] / line["epoch"] for line in epochs if line["epoch"]), default=1.0)
    epoch_numbers = [line["epoch"] for line in epochs]
    size = 6 if len(epochs) <= _FEW_EPOCHS else 3 if len(epochs) <= _MANY_EPOCHS else 0

    def over_epochs(axes: Axes, name: str, color: str, values: list[float], style: str = "o-") -> None:
        if values:
            axes.plot(epoch_numbers, values, style, color=color, ms=size, label=name)
        if len(values) == 1:
            place = (epoch_numbers[0], values[0])
            axes.annotate(f"{values[0]:.3g}  ", place, color=color, ha="right", va="center", fontsize=8)

    if len(steps) > 1:
        at, losses = [s["update"] / per_epoch for s in steps], [s["loss"] for s in steps]
        loss.plot(at, losses, color=BLUE, alpha=0.3, lw=1, label=f"training, every {settings.log_every} steps")
    over_epochs(loss, "training", BLUE, [line["train_loss"] for line in epochs])
    over_epochs(loss, "validation", RED, [line["validation"]["loss"] for line in epochs])
    loss.set_ylabel("loss, nats")
    loss.set_ylim(bottom=0)
    over_epochs(accuracy, "top-1, training", BLUE, [line["train_top1"] for line in epochs])
    over_epochs(accuracy, "top-1, validation", RED, [line["validation"]["top1"] for line in epochs])
    if top5_says_something(classes):
        over_epochs(accuracy, "top-5, validation", GOLD, [line["validation"]["top5"] for line in epochs], "o--")
    accuracy.set_ylim(0, 103)
    accuracy.set_ylabel("percent")
    at_step, rates = learning_rates([*steps, *epochs], settings, per_epoch)
    if len(rates):
        style = "o-" if len(rates) < 40 else "-"
        rate.plot((at_step + 1) / per_epoch, rates, style, ms=3, color=GRAY, label="of each optimizer step")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy):
        if best in epoch_numbers and len(epochs) > 1:
            axes.axvline(best, color="black", lw=0.8, ls=":", label=f"best epoch ({best})")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.set_xlim(0, 1.04 * max([1, *epoch_numbers, *((at_step + 1) / per_epoch)[-1:]]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=8, frameon=False)
    save_figure(figure, path)


def _title(figure: Figure, title: str, more: str = "") -> None:
    """What a figure is of, and what it shows, above it."""
    text = f"{_shown(title, 150)}\n{more}" if more else _shown(title, 150)
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def placed(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of metrics.jsonl whose epoch and optimizer step are possible; the file may be damaged."""
    return [
        line
        for line in lines
        if _has_numbers(line, "epoch", "update") and 0 <= line["epoch"] <= 1e9 and 0 <= line["update"] <= 1e15
    ]


def of_epochs(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of lines of metrics.jsonl those of epochs, with all figures of training and validation."""
    epochs = [line for line in lines if _has_numbers(line, "train_loss", "train_top1")]
    return [line for line in epochs if _has_numbers(line.get("validation"), "top1", "top5", "loss")]


def learning_rates(
    lines: Sequence[Mapping[str, Any]], settings: Train, per_epoch: float
) -> tuple[np.ndarray, np.ndarray]:
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


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], path: Path, title: str) -> None:
    """Draws a confusion matrix in percent of each true class, with class names unless there are hundreds.

    Args:
        matrix: int (K, K), number of clips by true class (rows) and by predicted class (columns).
        labels: K class names.
        path: of the figure, without suffix.
        title: what the figure is of.
    """
    clips, count = matrix.sum(1, keepdims=True), len(labels)
    shares = np.divide(100 * matrix, clips, out=np.full(matrix.shape, np.nan), where=clips > 0)
    numbered, named = count <= _MAX_NUMBERED_CLASSES, count <= _MAX_NAMED_CLASSES
    cell, font = (0.3, 8) if numbered else (0.115, 6)  # inches, points
    figure = new_figure(5.5 + cell * count, 4.5 + cell * count) if named else new_figure(10, 9)
    _title(figure, title, "percent of the clips of each true class")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    if named:
        names = [_shown(label, 44 if numbered else 60) for label in labels]
        angle = 45 if numbered else 90
        axes.set_xticks(
            range(count), names, fontsize=font, rotation=angle, ha="right", va="center", rotation_mode="anchor"
        )
        without = [name if has else f"{name} (no clips)" for name, has in zip(names, clips[:, 0], strict=True)]
        axes.set_yticks(range(count), without, fontsize=font)
    if numbered:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            value = shares[row, column]
            color = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("predicted class" if named else "predicted class, by its number")
    axes.set_ylabel("true class" if named else "true class, by its number")
    figure.colorbar(image, ax=axes, shrink=0.6, label="percent")
    save_figure(figure, path)


def _shown(label: str, width: int) -> str:
    """A label, cut to a width, in which nothing is a control character or a formula for Matplotlib."""
    return textwrap.shorten(printable(label), width, placeholder=" ...").replace("$", r"\$")


def draw_worst_classes(matrix: np.ndarray, labels: Sequence[str], path: Path, title: str, most: int = 20) -> None:
    """Draws the recall of the worst classes, each with its most frequent wrong prediction. See `draw_confusion`."""
    every = per_class_results(matrix, labels)
    results = every[:most]
    figure = new_figure(11, 1.6 + 0.3 * max(2, len(results)))
    which = (
        f"the {most} of {len(every)} classes with the lowest recall" if len(every) > most else "recall of the classes"
    )
    _title(figure, title, f"{which}, and what their clips are most often taken for")
    axes = figure.subplots()
    rows = range(len(results))
    axes.barh(rows, [r.recall for r in results], color=BLUE, height=0.7)
    for row, result in zip(rows, results, strict=True):
        inside = result.recall > 85
        axes.text(
            result.recall + (-1 if inside else 1),
            row,
            f"{result.recall:.0f}",
            va="center",
            ha="right" if inside else "left",
            fontsize=7.5,
            color="white" if inside else "black",
        )
        confused = f"{result.confused_clips} of {result.clips}: {_shown(result.confused_with, 56)}"
        text = confused if result.confused_clips else f"all {result.clips} clips right"
        axes.text(1.02, row, text, va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks(rows, [_shown(r.label, 56) for r in results], fontsize=8)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("recall, percent")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
