"""What every network of this package is: normalisation, a backbone, and a classifier.

Letters: N clips, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

# Mean and standard deviation of ImageNet's RGB, which published 2D weights expect; in units of a byte.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))


class Normalise(nn.Module):
    """uint8 (N, T, H, W, 3) to float (N, 3, T, H, W), about zero with unit spread.

    The result is in channels-last-3d without a copy: in memory it lies as the clip does.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(STD).view(1, 3, 1, 1, 1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if clips.is_cuda and self.mean.dtype == torch.float32 and not torch.compiler.is_compiling():
            return self.at_once(clips, torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None)
        # What compiles this fuses it by itself. The cast comes first: TensorRT takes a uint8 input only into a cast.
        return (clips.to(self.mean.dtype).permute(0, 4, 1, 2, 3) - self.mean) * self.scale

    def at_once(self, clips: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The same by one kernel that reads bytes, computes in fp32 and writes `dtype`, which the first convolution takes."""
        pixels = clips.permute(0, 4, 1, 2, 3)
        out = torch.empty_like(pixels, dtype=dtype or torch.float32)  # laid out as the clip is
        return torch.addcmul(-self.mean * self.scale, pixels, self.scale, out=out)


class Backbone(nn.Module):
    """From normalised clips (N, 3, T, H, W) to features (N, D)."""

    width_out: int
    """D."""


class ClipModel(nn.Module):
    """uint8 clips (N, T, H, W, 3) to logits (N, K).

    Args:
        backbone: normalised clips (N, 3, T, H, W) to features (N, D).
        features: D.
        classes: K.
        dropout: probability with which a feature is zeroed before the classifier, in training.
    """

    def __init__(self, backbone: nn.Module, *, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise = Normalise()
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
        """Puts the weights into the layout that the clips arrive in: channels-last-3d, or channels-last for 2D."""
        for tensor in self.parameters():
            if tensor.ndim in (4, 5):
                layout = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                tensor.data = tensor.data.contiguous(memory_format=layout)
        return self

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 (N, T, H, W, 3) to pooled features (N, D)."""
        return cast(torch.Tensor, self.backbone(self.normalise(clips)))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.dropout(self.features(clips))))


def freeze_backbone(model: ClipModel) -> None:
    """From here on only the classifier trains.

    The backbone stays in evaluation mode, so that its batch norms keep the statistics that they came with.
    """
    model.frozen = True
    model.backbone.requires_grad_(False)
    model.train(model.training)


def mean_over_views(logits: torch.Tensor, videos: int) -> torch.Tensor:
    """One row a video, as logarithms of probabilities, from the logits (videos * views, classes) of its views."""
    if len(logits) == videos:
        return logits
    views = logits.view(videos, -1, logits.shape[1])
    # In logarithms throughout: a probability that is too small for a float is not one of zero.
    return views.log_softmax(-1).logsumexp(1) - math.log(views.shape[1])
