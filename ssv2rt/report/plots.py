"""Pictures of a run: how it learned, and what it takes for what."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.training.confusion import class_figures

BLUE, RED, GOLD, GREY = "#4477aa", "#ee6677", "#ccbb44", "#999999"
"""Told apart by colour-blind eyes, too (Paul Tol's bright scheme)."""
_NAMED = 40
"""Classes up to which a matrix has their names beside it."""


def save_picture(figure: Figure, path: Path) -> None:
    """Writes PNG and SVG files, each whole or not at all. `path` has no suffix."""
    for kind in ("png", "svg"):
        with atomic_file(path.with_name(f"{path.name}.{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=130)


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs.

    Args:
        lines: those of metrics.jsonl.
        path: of the picture, without suffix.
    """
    figure = blank(12, 3.8)
    loss, accuracy, rate = figure.subplots(1, 3)
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "validation" in line]
    per_epoch = max((line["update"] / line["epoch"] for line in epochs if line["epoch"]), default=1.0)
    at = [line["epoch"] for line in epochs]
    if steps:
        loss.plot([s["update"] / per_epoch for s in steps], [s["loss"] for s in steps], color=BLUE, alpha=0.3, lw=1)
    loss.plot(at, [line["train_loss"] for line in epochs], "o-", color=BLUE, ms=3, label="training")
    loss.plot(at, [line["validation"]["loss"] for line in epochs], "o-", color=RED, ms=3, label="validation")
    loss.set_ylabel("loss, nats")
    accuracy.plot(at, [line["train_top1"] for line in epochs], "o-", color=BLUE, ms=3, label="top-1, training")
    for name, style in (("top1", "o-"), ("top5", "o--")):
        values = [line["validation"][name] for line in epochs]
        accuracy.plot(at, values, style, color=RED, ms=3, label=f"top-{name[3:]}, validation")
    accuracy.set_ylim(0, 102)
    accuracy.set_ylabel("percent")
    rate.plot([s["update"] / per_epoch for s in steps], [s["learning_rate"] for s in steps], color=GREY)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    for axes in (loss, accuracy):
        axes.legend(frameon=False, fontsize=8)
    save_picture(figure, path)


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """The matrix as shares of each true class; with the names of the classes where there are few enough to read.

    Args:
        matrix: int (K, K), clips by true class (rows) and by predicted class (columns).
        labels: K names.
        path: of the picture, without suffix.
    """
    clips = matrix.sum(1, keepdims=True)
    shares = np.divide(100 * matrix, clips, out=np.full(matrix.shape, np.nan), where=clips > 0)
    named = len(labels) <= _NAMED
    figure = blank(5.5 + 0.3 * len(labels), 4 + 0.3 * len(labels)) if named else blank(10, 9)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    if named:
        names = [textwrap.shorten(label, 44, placeholder=" ...") for label in labels]
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
    save_picture(figure, path)


def draw_worst(matrix: np.ndarray, labels: Sequence[str], path: Path, most: int = 20) -> None:
    """Bars of the classes that are recognised worst, each with what it is taken for; arguments as `draw_confusion`."""
    figures = class_figures(matrix, labels)[:most]
    figure = blank(11, 1.4 + 0.36 * len(figures))
    axes = figure.subplots()
    rows = range(len(figures))
    axes.barh(rows, [f.recall for f in figures], color=BLUE, height=0.7)
    for row, one in zip(rows, figures, strict=True):
        name = textwrap.shorten(one.mistaken_for, 52, placeholder=" ...")
        text = f"{one.mistaken} of {one.clips} taken for: {name}" if name else f"all {one.clips}"
        inside = one.recall > 55
        axes.text(
            one.recall + (-1 if inside else 1),
            row,
            text,
            va="center",
            ha="right" if inside else "left",
            fontsize=7.5,
            color="white" if inside else "black",
        )
    names = [textwrap.shorten(f.label, 56, placeholder=" ...") for f in figures]
    axes.set_yticks(rows, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of the class that is recognised")
    axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
