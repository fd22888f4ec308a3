"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch of N clips of T frames.

Clip n is mixed with clip N - 1 - n of its batch. Clips stay uint8. The labels are those after horizontal flips, which can
change a label. The random choices depend only on seed, epoch and step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssv2rt.core.train_settings import Train


@dataclass(frozen=True)
class MixedBatch:
    """Clips with two labels each; the loss is the mean of both losses, weighted by `own_weight`."""

    clips: torch.Tensor
    """uint8 (N, T, H, W, 3)"""
    labels: torch.Tensor
    """int64 (N,)"""
    other_labels: torch.Tensor
    """int64 (N,): labels of the clips that were mixed in."""
    own_weight: float
    """Lambda of the papers: the share of its own content in each clip, 0 to 1."""


def mix(clips: torch.Tensor, labels: torch.Tensor, settings: Train, *, epoch: int, step: int) -> MixedBatch:
    """Applies mixup or CutMix, chosen at random if the recipe has both; returns the batch unchanged if it has none."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(settings, kind) > 0]
    if not kinds or len(clips) < 2:
        return MixedBatch(clips, labels, labels, 1.0)
    from ssv2rt.pipelines.request_source import clip_rng

    rng = clip_rng(settings.seed, epoch, f"mix of step {step}")
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = getattr(settings, kind)
    own_weight = float(rng.beta(alpha, alpha))
    other = clips.flip(0)
    if kind == "mixup":
        # Fixed-point arithmetic, since clips are uint8: the weight is rounded to 1/256.
        weight = round(256 * own_weight)
        blended = clips.to(torch.int32).mul_(weight).add_(other.to(torch.int32), alpha=256 - weight)
        return MixedBatch(
            blended.add_(128).div_(256, rounding_mode="floor").to(torch.uint8), labels, labels.flip(0), weight / 256
        )
    height, width = clips.shape[2:4]
    side = np.sqrt(1 - own_weight)
    box_height, box_width = round(side * height), round(side * width)
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    pasted = clips.clone()
    box = (slice(None), slice(None), slice(top, top + box_height), slice(left, left + box_width))
    pasted[box] = other[box]
    return MixedBatch(pasted, labels, labels.flip(0), 1 - box_height * box_width / (height * width))
