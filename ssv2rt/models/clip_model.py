"""The structure of every network in this package: normalization, a backbone, and a linear classifier.

Letters: N clips, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ssv2rt.core.recipes import Average

# Mean and standard deviation of ImageNet's RGB values, 0 to 255. Published 2D weights expect them.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))
# The same of Kinetics. torchvision's video networks expect them.
KINETICS_MEAN = tuple(255 * value for value in (0.43216, 0.394666, 0.37645))
KINETICS_STD = tuple(255 * value for value in (0.22803, 0.22145, 0.216989))


class Normalize(nn.Module):
    """uint8 (N, T, H, W, 3) to float (N, 3, T, H, W), with mean 0 and standard deviation 1.

    The result is in channels-last-3d, which is the order of a clip in memory, so nothing has to be transposed.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1, 1))
        self.set_colors(MEAN, STD)

    def set_colors(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the mean and standard deviation of red, green and blue, 0 to 255."""
        self.mean.copy_(torch.tensor(mean, device=self.mean.device).view(1, 3, 1, 1, 1))
        self.scale.copy_(1 / torch.tensor(std, device=self.scale.device).view(1, 3, 1, 1, 1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if clips.is_cuda and self.mean.dtype == torch.float32 and not torch.compiler.is_compiling():
            return self.normalize_fused(
                clips, torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
            )
        # Compilers fuse this themselves. The cast comes first, because TensorRT allows only a cast after a uint8 input.
        return (clips.to(self.mean.dtype).permute(0, 4, 1, 2, 3) - self.mean) * self.scale

    def normalize_fused(self, clips: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Does the same in one kernel, which reads uint8, computes in fp32 and writes `dtype` (by default fp32)."""
        pixels = clips.permute(0, 4, 1, 2, 3)
        out = torch.empty_like(pixels, dtype=dtype or torch.float32)  # keeps the memory format of the clip
        return torch.addcmul(-self.mean * self.scale, pixels, self.scale, out=out)


class Backbone(nn.Module):
    """Base class of the networks from normalized clips (N, 3, T, H, W) to features (N, D)."""

    feature_size: int
    """D."""


class ClipModel(nn.Module):
    """uint8 clips (N, T, H, W, 3) to logits (N, K).

    Args:
        backbone: normalized clips (N, 3, T, H, W) to features (N, D).
        features: D.
        classes: K.
        dropout: dropout probability of the features before the classifier.
    """

    def __init__(self, backbone: nn.Module, *, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise = Normalize()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)
        self.frozen = False

    def train(self, mode: bool = True) -> ClipModel:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def channels_last(self) -> ClipModel:
        """Converts the weights to the memory format of the clips: channels-last-3d, or channels-last for 2D layers."""
        for tensor in self.parameters():
            if tensor.ndim in (4, 5):
                layout = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                tensor.data = tensor.data.contiguous(memory_format=layout)
        return self

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 clips (N, T, H, W, 3) to features (N, D), the input of the classifier."""
        return cast(torch.Tensor, self.backbone(self.normalise(clips)))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.dropout(self.features(clips))))


def freeze_backbone(model: ClipModel) -> None:
    """Freezes the backbone, so that only the classifier is trained.

    The backbone stays in evaluation mode, so that its batch norms keep their running statistics.
    """
    model.frozen = True
    model.backbone.requires_grad_(False)
    model.train(model.training)


def mean_over_views(logits: torch.Tensor, videos: int, average: Average) -> torch.Tensor:
    """Averages each video's views.

    Args:
        logits: (videos * views, classes), the views of a video one after the other.
        videos: how many videos there are.
        average: what is averaged.

    Returns:
        (videos, classes): the mean logits, or the logarithms of the mean probabilities; with one view per video, the logits
        unchanged.
    """
    if len(logits) == videos:
        return logits
    views = logits.view(videos, -1, logits.shape[1])
    if average == "logits":
        return views.mean(1)
    # Computed with logarithms, so that probabilities do not underflow to zero.
    return views.log_softmax(-1).logsumexp(1) - math.log(views.shape[1])
