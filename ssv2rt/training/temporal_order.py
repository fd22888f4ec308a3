"""What a trained network makes of the order of time: its test clips as they are, reversed and shuffled, and their twins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Recipe
from ssv2rt.dataset.manifest import Split
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.pipelines.request_source import clip_rng
from ssv2rt.pipelines.samplers import evaluation_batches
from ssv2rt.training.evaluate import evaluation_loader

_ROUNDING = 1e-4
"""Logits that differ by less, in fp32, are the same: a mean over frames depends on their order by as much."""


@dataclass(frozen=True)
class TemporalOrder:
    """Accuracies in percent; None where the data has no twins."""

    top1: float
    top1_reversed: float
    """With the frames of every clip in reverse, and the labels as they are."""
    top1_shuffled: float
    """With the frames of every clip in a random order."""
    pairs: int
    """Twins of which both could be read."""
    both_right: float | None
    """Pairs of which both have the right label first."""
    told_apart: float | None
    """Pairs in which the label of the first weighs more, beside that of the second, in the first than in the second. Where
    the two weigh the same but for rounding, as for a network that cannot see order, a pair counts half: chance is 50."""


def measure_order(model: ClipModel, split: Split, recipe: Recipe, device: torch.device) -> TemporalOrder:
    """Evaluates a network, in fp32 and in evaluation mode, on labelled clips in three orders of time."""
    model.eval()
    clip = recipe.clip.one_view()
    loader = evaluation_loader(recipe.model_copy(update={"clip": clip}), device)
    logits: dict[str, torch.Tensor] = {}
    right = np.zeros(3)
    with torch.inference_mode(), Progress("three orders of time", len(split)) as progress:
        for batch in loader.batches(evaluation_batches(split, clip, batch=recipe.train.batch)):
            if not batch.requests:
                continue
            clips = batch.clips
            shuffled = torch.stack([c[_shuffle(r.id, len(c))] for c, r in zip(clips, batch.requests, strict=True)])
            answers = [model(c) for c in (clips, clips.flip(1), shuffled)]
            right += [int((answer.argmax(1) == batch.labels).sum()) for answer in answers]
            logits |= {r.id: answer.double().cpu() for r, answer in zip(batch.requests, answers[0], strict=True)}
            progress.add(len(clips))
    shares = 100 * right / max(1, len(logits))
    label = {split.ids[row].as_py(): int(split.classes[row]) for row in range(len(split))}
    pairs = [(a, b) for a, b in twins_of(split) if a in logits and b in logits]
    both, apart = 0, 0.0
    for a, b in pairs:
        both += int(logits[a].argmax()) == label[a] and int(logits[b].argmax()) == label[b]
        lean = [float(logits[name][label[a]] - logits[name][label[b]]) for name in (a, b)]
        difference = lean[0] - lean[1]
        apart += 0.5 if abs(difference) < _ROUNDING else float(difference > 0)
    return TemporalOrder(
        top1=float(shares[0]),
        top1_reversed=float(shares[1]),
        top1_shuffled=float(shares[2]),
        pairs=len(pairs),
        both_right=100 * both / len(pairs) if pairs else None,
        told_apart=100 * apart / len(pairs) if pairs else None,
    )


def twins_of(split: Split) -> list[tuple[str, str]]:
    """Pairs of clips of a split that are each other's reversal, as a synthetic set names them; none for other data."""
    path = Path(split.folder) / "twins.json"
    if not path.is_file():
        return []
    twins = json.loads(path.read_text(encoding="utf-8"))
    here = set(split.ids.to_pylist())
    return [(a, b) for a, b in twins.items() if a in here and b in here and a < b]


def _shuffle(name: str, frames: int) -> torch.Tensor:
    return torch.from_numpy(clip_rng(0, 0, f"shuffle {name}").permutation(frames))
