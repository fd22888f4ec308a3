"""Training clips made of two: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019). Letters: N clips, T frames, H, W.

Clip n is mixed with clip N - 1 - n of its batch. A clip stays uint8, and labels are those that the clips have after
mirroring. The draws follow from seed, epoch and step alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssv2rt.core.recipes import Train


@dataclass(frozen=True)
class Mixed:
    """Clips with two labels each."""

    clips: torch.Tensor
    """uint8 (N, T, H, W, 3)"""
    labels: torch.Tensor
    """int64 (N,)"""
    others: torch.Tensor
    """int64 (N,): of the clips that were mixed in."""
    share: float
    """How much of a clip is its own, 0 to 1."""


def mix(clips: torch.Tensor, labels: torch.Tensor, settings: Train, *, epoch: int, step: int) -> Mixed:
    """Mixes a batch as the recipe says; unchanged where it says nothing."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(settings, kind) > 0]
    if not kinds or len(clips) < 2:
        return Mixed(clips, labels, labels, 1.0)
    from ssv2rt.pipelines.request_source import clip_rng

    rng = clip_rng(settings.seed, epoch, f"mix of step {step}")
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = getattr(settings, kind)
    share = float(rng.beta(alpha, alpha))
    other = clips.flip(0)
    if kind == "mixup":
        # In fixed point, for a clip is bytes: share is rounded to 1/256.
        weight = round(256 * share)
        blended = clips.to(torch.int32).mul_(weight).add_(other.to(torch.int32), alpha=256 - weight)
        return Mixed(
            blended.add_(128).div_(256, rounding_mode="floor").to(torch.uint8), labels, labels.flip(0), weight / 256
        )
    height, width = clips.shape[2:4]
    side = np.sqrt(1 - share)
    high, wide = round(side * height), round(side * width)
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    pasted = clips.clone()
    pasted[:, :, top : top + high, left : left + wide] = other[:, :, top : top + high, left : left + wide]
    return Mixed(pasted, labels, labels.flip(0), 1 - high * wide / (height * width))
