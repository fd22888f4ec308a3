"""Grad-CAM over space and time (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

Which parts of a clip raise the logit of a class: the last maps of the network that have enough pixels, each weighted by the
mean gradient of the logit with respect to it, are added up, and what is below zero is cut off.

Letters: N clips, T frames, S size, C channels, K classes; t, h, w: size of the last maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ssv2rt.models.clip_model import ClipModel

_FEWEST = 6
"""Pixels of a map's side. Maps of fewer would not tell where anything is: those of an earlier layer are taken."""


def grad_cam(model: ClipModel, clips: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Computes the maps of N clips, each for one class.

    Args:
        model: in evaluation mode, in fp32, on the clips' device.
        clips: uint8 (N, T, S, S, 3).
        classes: int64 (N,): class numbers.

    Returns:
        float32 (N, T, S, S), 0 to 1: 1 is the largest value of each clip. A clip in which nothing speaks for its class is 0
        throughout.
    """
    maps = _LastMaps(model)
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    try:
        for module in recurrent:
            module.train()  # which changes nothing, since they have no dropout; cuDNN gives no gradients otherwise
        with torch.enable_grad():
            logits = model(clips)
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, maps.output)
    finally:
        maps.remove()
        for module in recurrent:
            module.eval()
    features, gradient = (_with_time(part.float(), len(clips)) for part in (maps.output.detach(), gradient))
    weights = gradient.mean((2, 3, 4), keepdim=True)
    heat = F.relu((weights * features).sum(1, keepdim=True))
    heat = F.interpolate(heat, size=tuple(clips.shape[1:4]), mode="trilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


HEAT = (255, 120, 0)
"""The color of an overlay."""


def opacity(heat: np.ndarray) -> np.ndarray:
    """How opaque an overlay is, 0 to 0.75, where `heat` is 0 to 1."""
    return np.asarray(np.clip(heat, 0, 1) ** 1.5 * 0.75)


def overlay(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frames, uint8 RGB (T, S, S, 3), with `heat`, 0 to 1 (T, S, S), laid over them."""
    share = opacity(heat)[..., None]
    return np.asarray(frames * (1 - share) + np.array(HEAT) * share).round().astype(np.uint8)


class _LastMaps:
    """Keeps the last output of any layer or block that has enough pixels."""

    output: torch.Tensor

    def __init__(self, model: ClipModel) -> None:
        self._hooks = [module.register_forward_hook(self._keep) for module in model.backbone.modules()]

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if (
            isinstance(output, torch.Tensor)
            and output.ndim in (4, 5)
            and output.shape[-1] >= _FEWEST
            and output.requires_grad
        ):
            self.output = output

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _with_time(maps: torch.Tensor, clips: int) -> torch.Tensor:
    """(N, C, t, h, w): also of a 2D network, whose maps are (N * t, C, h, w)."""
    return maps if maps.ndim == 5 else maps.unflatten(0, (clips, -1)).transpose(1, 2)
