"""Measures how much a trained network uses the order of frames.

The network is evaluated on clips with frames in order, reversed, and shuffled. A synthetic data set also has twins: pairs of
clips with the same frames in opposite order and with opposite labels.
"""

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

_ROUNDING_TOLERANCE = 1e-4
"""Smaller differences of fp32 logits count as equal, since even a mean over frames rounds differently in another order."""


@dataclass(frozen=True)
class TemporalOrderScores:
    """Accuracies in percent. Fields are keys of result.json; those of twins are None if the data set has no twins."""

    top1: float
    top1_reversed: float
    """With the frames of every clip in reverse order, and unchanged labels."""
    top1_shuffled: float
    """With the frames of every clip in random order, and unchanged labels."""
    pairs: int
    """Number of pairs of twins; only pairs of which both clips could be decoded count."""
    both_right: float | None
    """Share of pairs in which both clips are predicted correctly."""
    told_apart: float | None
    """Share of pairs that the network tells apart. With labels A and B of the twins a and b, these are the pairs for which
    logit A minus logit B is larger for clip a than for clip b. If the differences are equal up to rounding, as for a network
    that cannot see order, a pair counts half, so that chance is 50."""


def measure_temporal_order(model: ClipModel, split: Split, recipe: Recipe, device: torch.device) -> TemporalOrderScores:
    """Evaluates a network in fp32 on labeled clips, with their frames in order, reversed and shuffled."""
    model.eval()
    clip = recipe.clip.one_view()
    loader = evaluation_loader(recipe.model_copy(update={"clip": clip}), device)
    logits: dict[str, torch.Tensor] = {}
    correct = np.zeros(3)
    with torch.inference_mode(), Progress("frames in order, reversed, shuffled", len(split)) as progress:
        for batch in loader.batches(evaluation_batches(split, clip, batch=recipe.train.batch)):
            if not batch.requests:
                continue
            clips = batch.clips
            shuffled = torch.stack([c[_shuffle(r.id, len(c))] for c, r in zip(clips, batch.requests, strict=True)])
            outputs = [model(c) for c in (clips, clips.flip(1), shuffled)]
            correct += [int((output.argmax(1) == batch.labels).sum()) for output in outputs]
            logits |= {r.id: output.double().cpu() for r, output in zip(batch.requests, outputs[0], strict=True)}
            progress.add(len(clips))
    accuracy = 100 * correct / max(1, len(logits))
    label = {split.ids[row].as_py(): int(split.classes[row]) for row in range(len(split))}
    pairs = [(a, b) for a, b in twin_pairs(split) if a in logits and b in logits]
    both_correct, apart = 0, 0.0
    for a, b in pairs:
        both_correct += int(logits[a].argmax()) == label[a] and int(logits[b].argmax()) == label[b]
        margins = [float(logits[name][label[a]] - logits[name][label[b]]) for name in (a, b)]
        difference = margins[0] - margins[1]
        apart += 0.5 if abs(difference) < _ROUNDING_TOLERANCE else float(difference > 0)
    return TemporalOrderScores(
        top1=float(accuracy[0]),
        top1_reversed=float(accuracy[1]),
        top1_shuffled=float(accuracy[2]),
        pairs=len(pairs),
        both_right=100 * both_correct / len(pairs) if pairs else None,
        told_apart=100 * apart / len(pairs) if pairs else None,
    )


def twin_pairs(split: Split) -> list[tuple[str, str]]:
    """Pairs of clip names from twins.json of a synthetic data set; empty for other data sets."""
    path = Path(split.folder) / "twins.json"
    if not path.is_file():
        return []
    twins = json.loads(path.read_text(encoding="utf-8"))
    here = set(split.ids.to_pylist())
    return [(a, b) for a, b in twins.items() if a in here and b in here and a < b]


def _shuffle(name: str, frames: int) -> torch.Tensor:
    """A random permutation that depends only on the name of the clip."""
    return torch.from_numpy(clip_rng(0, 0, f"shuffle {name}").permutation(frames))
