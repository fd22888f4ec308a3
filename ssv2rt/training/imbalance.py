"""Classes with very different numbers of training clips: weights in the loss, and what the best epoch is chosen by.

Letters: N clips, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.labels import NO_MIRROR
from ssv2rt.training.evaluate import Evaluation

IMBALANCED = 3.0
"""Classes are imbalanced if the largest has over this many times the training clips of the smallest."""


def clips_per_class(classes: np.ndarray, count: int) -> np.ndarray:
    """int64 (K,): number of clips of each of `count` classes.

    Args:
        classes: int (N,), class numbers from 0.
        count: K.
    """
    return np.bincount(classes, minlength=count)


def after_flips(clips: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """float64 (K,): expected number of clips of each class in an epoch where half of them are flipped, if their label allows.

    Args:
        clips: int (K,), clips of each class.
        mirrored: int (K,), see `Split.mirrored`.
    """
    moved = np.where((mirrored == np.arange(len(clips))) | (mirrored == NO_MIRROR), 0, clips / 2)
    return clips - moved + np.bincount(np.maximum(mirrored, 0), moved, minlength=len(clips))


def is_imbalanced(clips: np.ndarray) -> bool:
    """Whether the largest class has over `IMBALANCED` times the clips of the smallest. Classes without clips do not count."""
    present = clips[clips > 0]
    return bool(len(present)) and bool(present.max() > IMBALANCED * present.min())


def class_weights(clips: np.ndarray, settings: Train) -> torch.Tensor | None:
    """float32 (K,): the weights of `train.class_weights`, whose mean over all clips is 1; None for equal weights.

    Args:
        clips: (K,), training clips of each class, by their labels after flips. A class without clips has weight 0.
        settings: the recipe's `[train]`.
    """
    if settings.class_weights == "none":
        return None
    power = 1.0 if settings.class_weights == "inverse" else 0.5
    weights = np.divide(1.0, clips**power, out=np.zeros(len(clips)), where=clips > 0)
    return torch.from_numpy(weights * clips.sum() / (weights * clips).sum()).float()


def best_by(clips: np.ndarray, settings: Train) -> str:
    """What the best checkpoint is chosen by, `top1` or `mean-class`, as `train.best_by` says for these training clips."""
    if settings.best_by == "auto":
        return "mean-class" if is_imbalanced(clips) else "top1"
    return settings.best_by


def quality(evaluation: Evaluation, by: str) -> tuple[float, float]:
    """Sort key of evaluations: higher accuracy is better; at the same accuracy, lower loss is better.

    Args:
        evaluation: of an epoch.
        by: `top1` or `mean-class`.
    """
    accuracy = evaluation.top1 if by == "top1" else evaluation.mean_class_accuracy or 0.0
    return accuracy, -evaluation.loss if math.isfinite(evaluation.loss) else -math.inf


def imbalance_in_words(clips: np.ndarray, labels: Sequence[str], settings: Train) -> str:
    """How imbalanced classes are, and what the recipe does about it or could do, in one line; empty if they are not."""
    if not is_imbalanced(clips):
        return ""
    largest, smallest = int(clips.argmax()), int(np.where(clips > 0, clips, clips.max() + 1).argmin())
    done = [
        f"train.{name} = {value}"
        for name, value, plain in (
            ("sampler", settings.sampler, "shuffle"),
            ("class_weights", settings.class_weights, "none"),
        )
        if value != plain
    ]
    advice = "train.sampler = balanced, or train.class_weights = sqrt, gives small classes more weight"
    return (
        f"classes are imbalanced: {clips[largest]} training clips of '{labels[largest]}', {clips[smallest]} of "
        f"'{labels[smallest]}'; {' and '.join(done) or advice}; the best epoch is that with the best "
        f"{'mean class accuracy' if best_by(clips, settings) == 'mean-class' else 'top-1 (train.best_by)'}"
    )
