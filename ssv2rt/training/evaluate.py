"""How often a model is right on a split."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from ssv2rt.console import Progress
from ssv2rt.dataset.manifest import Split
from ssv2rt.errors import UserError
from ssv2rt.hardware import Precision
from ssv2rt.models.clipmodel import ClipModel, mean_over_views
from ssv2rt.pipelines.epochs import evaluation_batches
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.recipes import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Results on one split. Accuracies in percent, loss in nats per clip."""

    top1: float
    top5: float
    loss: float
    clips: int
    bad: int
    """Clips that could not be decoded; they are in none of the figures."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate(
    model: ClipModel,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    precision: Precision,
    loader: ClipLoader | None = None,
) -> Evaluation:
    """Evaluates every clip of a split once. The probabilities of its views are averaged.

    Raises:
        UserError: the split has clips without a label, or none could be decoded.
    """
    if (split.classes < 0).any():
        raise UserError("this split has clips without a label; evaluate one that has them, such as validation")
    loader = loader or evaluation_loader(recipe, device)
    classes = len(split.labels)
    top1 = MulticlassAccuracy(classes, top_k=1, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro").to(device)
    loss, seen, bad = torch.zeros((), device=device), 0, 0
    model.eval()
    with torch.inference_mode(), Progress("evaluating", len(split)) as progress:
        for batch in loader.batches(evaluation_batches(split, recipe.clip, batch=recipe.train.batch_size)):
            bad += len(batch.bad)
            if batch.requests:
                labels = batch.labels
                with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                    logits = model(batch.clips)
                logits = mean_over_views(logits.float(), len(labels))
                loss += F.cross_entropy(logits, labels, reduction="sum")
                top1.update(logits, labels)
                top5.update(logits, labels)
                seen += len(labels)
            progress.show(seen + bad)
    if not seen:
        raise UserError("not one clip of the split could be decoded; look at the videos")
    return Evaluation(100 * top1.compute().item(), 100 * top5.compute().item(), loss.item() / seen, seen, bad)


def evaluation_loader(recipe: Recipe, device: torch.device) -> ClipLoader:
    return ClipLoader(clip=recipe.clip, batch=recipe.train.batch_size, data=recipe.data, device=device)
