"""How often a model is right on a split."""

from __future__ import annotations

from collections.abc import Callable
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
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.samplers import evaluation_batches
from ssv2rt.training.distributed import Group


@dataclass(frozen=True)
class Evaluation:
    """Results on one split. Accuracies in percent, loss in nats per clip."""

    top1: float
    top5: float
    loss: float
    clips: int
    bad: int
    """Clips that could not be decoded; they are in none of the figures."""
    confusion: np.ndarray | None = field(default=None, compare=False, repr=False)
    """int64 (K, K): clips by true class (rows) and by the class that is first (columns)."""

    def as_dict(self) -> dict[str, float]:
        """The figures, without the matrix."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "confusion"}


def evaluate(
    model: ClipModel,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: Precision,
    loader: ClipLoader | None = None,
    group: Group | None = None,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates every clip of a split once, whatever the number of processes. A clip's views are averaged.

    Args:
        model: on the device.
        split: its clips need labels.
        recipe: says what the model sees, and in what batches.
        device: where the model is.
        precision: of the arithmetic.
        loader: made anew by default.
        group: processes that share the work, each of which gets the result; by default this one alone.
        between: called between batches, on one process only; what it raises ends the evaluation.

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
    loss, seen, bad = torch.zeros((), device=device), 0, 0
    model.eval()
    batches = evaluation_batches(split, recipe.clip, batch=recipe.train.batch, shard=group.shard)
    with torch.inference_mode(), Progress("evaluating", len(split), quiet=not group.first) as progress:
        for batch in loader.batches(batches):
            bad += len(batch.bad)
            if batch.requests:
                labels = batch.labels
                with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                    logits = model(batch.clips)
                logits = mean_over_views(logits.float(), len(labels))
                loss += F.cross_entropy(logits, labels, reduction="sum")
                top1.update(logits, labels)
                top5.update(logits, labels)
                confusion.update(logits, labels)
                seen += len(labels)
            progress.show((seen + bad) * group.size)
            if group.size == 1:
                between()
    total, clips, unread = group.sum(loss.item(), seen, bad)
    if not clips:
        raise UserError("not one clip of the split could be decoded; look at the videos")
    matrix = confusion.compute().cpu().numpy()
    return Evaluation(
        100 * top1.compute().item(),
        100 * top5.compute().item(),
        total / clips,
        int(clips),
        int(unread),
        matrix.astype(np.int64),
    )


def evaluation_loader(recipe: Recipe, device: torch.device, decoder_trust: DecoderTrust | None = None) -> ClipLoader:
    """Makes the clips that are evaluated. See `ClipLoader`."""
    return ClipLoader(
        clip=recipe.clip, batch=recipe.train.batch, data=recipe.data, device=device, decoder_trust=decoder_trust
    )
