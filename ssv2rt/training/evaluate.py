"""Evaluation of a model on a split: top-1, top-5, loss and confusion matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, Precision
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.manifest import Split
from ssv2rt.models.clip_model import ClipModel, mean_over_views
from ssv2rt.pipelines.decoder_trust import DecoderTrust
from ssv2rt.pipelines.loader import BadClip, ClipBatch, ClipLoader
from ssv2rt.pipelines.samplers import evaluation_batches
from ssv2rt.training.distributed import Group

logger = logging.getLogger(__name__)

Record = Callable[[ClipBatch, torch.Tensor | None], None]
"""Receives a batch of N clips and their logits, float32 (N, K), averaged over views; None if no clip could be decoded."""


@dataclass(frozen=True)
class Evaluation:
    """Results on one split. Accuracies are in percent, the loss is in nats per clip."""

    top1: float
    """Percent of the clips whose label is the most probable class."""
    top5: float
    """Percent of the clips whose label is among the five most probable classes."""
    loss: float
    """Mean cross-entropy."""
    clips: int
    """Clips that were evaluated."""
    bad: int
    """Clips that could not be decoded. They count in no other field."""
    mean_class_accuracy: float | None = None
    """Mean of the accuracies of the classes that have clips. None in checkpoints of earlier versions."""
    confusion: np.ndarray | None = field(default=None, compare=False, repr=False)
    """int64 (K, K): number of clips by true class (rows) and by predicted class (columns)."""

    def as_dict(self) -> dict[str, float]:
        """All fields that have a value, except the confusion matrix."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "confusion"}
        return {name: value for name, value in values.items() if value is not None}

    def facts(self) -> dict[str, object]:
        """All fields that have a value, except the confusion matrix, under the names that commands print."""
        return {"mean class accuracy" if name.startswith("mean") else name: v for name, v in self.as_dict().items()}


@dataclass
class BadClips:
    """The first clips that could not be decoded, for a message."""

    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, clips: Sequence[BadClip]) -> None:
        self.count += len(clips)
        self.names += [f"'{clip.request.path}' ({clip.reason})" for clip in clips[: max(0, 3 - len(self.names))]]

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more} more" if more else "")


def evaluate(
    model: ClipModel,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: Precision,
    loader: ClipLoader | None = None,
    group: Group | None = None,
    after_each_batch: Callable[[], None] = lambda: None,
    record: Record | None = None,
) -> Evaluation:
    """Evaluates every clip of a split once, for any number of processes. Its views are averaged as the recipe says.

    Args:
        model: must already be on the device.
        split: its clips need labels.
        recipe: sets the clips, the views, how they are averaged, and the batch size.
        device: where the model is.
        precision: of the forward pass, by autocast.
        loader: by default a new one.
        group: processes that share the clips; each of them gets the result of all. By default this process alone.
        after_each_batch: called as often in each process, after those batches that all have. An exception ends the evaluation.
        record: called with each batch and its logits.

    Raises:
        UserError: the split has clips without a label, or none could be decoded.
    """
    if (split.classes < 0).any():
        raise UserError("this split has clips without a label; evaluate one that has them, such as validation")
    loader = loader or evaluation_loader(recipe, device)
    classes = len(split.labels)
    group = group or Group(0, 1, device)
    top1 = MulticlassAccuracy(classes, top_k=1, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro").to(device)
    confusion = MulticlassConfusionMatrix(classes).to(device)
    loss, evaluated, bad = torch.zeros((), device=device), 0, 0
    bad_clips = BadClips()
    model.eval()
    batches = evaluation_batches(split, recipe.clip, batch=recipe.train.batch, shard=group.shard)
    videos = max(1, recipe.train.batch // (recipe.clip.views[0] * recipe.clip.views[1]))
    in_all = -(-(len(split) // group.size) // videos)  # batches of the smallest shard
    with torch.inference_mode(), Progress("evaluating", len(split), quiet=not group.is_rank_zero) as progress:
        for number, batch in enumerate(loader.batches(batches)):
            bad += len(batch.bad)
            bad_clips.add(batch.bad)
            if batch.requests:
                labels = batch.labels
                with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                    logits = model(batch.clips)
                logits = mean_over_views(logits.float(), len(labels), recipe.clip.average)
                loss += F.cross_entropy(logits, labels, reduction="sum")
                top1.update(logits, labels)
                top5.update(logits, labels)
                confusion.update(logits, labels)
                evaluated += len(labels)
            if record:
                record(batch, logits if batch.requests else None)
            progress.show((evaluated + bad) * group.size)
            if number < in_all:
                after_each_batch()
    total_loss, clips, undecodable = group.sum(loss.item(), evaluated, bad)
    if bad_clips.count:
        logger.warning(f"left out of the evaluation, as they could not be decoded: {bad_clips}")
    if not clips:
        raise UserError(f"none of the {len(split)} clips of the split could be decoded: {bad_clips}; check these files")
    matrix = confusion.compute().cpu().numpy().astype(np.int64)
    return Evaluation(
        100 * top1.compute().item(),
        100 * top5.compute().item(),
        total_loss / clips,
        int(clips),
        int(undecodable),
        mean_class_accuracy(matrix),
        matrix,
    )


def top5_says_something(classes: int) -> bool:
    """Whether top-5 accuracy is worth showing: of five classes or fewer, it is always 100."""
    return classes > 5


def mean_class_accuracy(confusion: np.ndarray) -> float:
    """The mean, in percent, of each class's share of correct clips, from a matrix (K, K) of true by predicted classes."""
    clips = confusion.sum(1)
    return 100 * float((confusion.diagonal()[clips > 0] / clips[clips > 0]).mean())


def evaluation_loader(recipe: Recipe, device: torch.device, decoder_trust: DecoderTrust | None = None) -> ClipLoader:
    """A loader for evaluation clips. See `ClipLoader`."""
    return ClipLoader(
        clip=recipe.clip, batch=recipe.train.batch, data=recipe.data, device=device, decoder_trust=decoder_trust
    )
