"""RandAugment over clips (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719): random operations, the same in all frames.

The operations are those of the paper; none mirrors a clip or changes the order of its frames, so labels stay true. Pillow's
functions of the same names are the reference: results differ from theirs by rounding. What they measure of a picture (its
histogram, its mean), these measure of the whole clip, so that nothing flickers.

They run in PyTorch where the clips are, on a CPU or a GPU, one clip at a time: clips of a batch have different operations, and
nothing waits for a GPU.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ssv2rt.pipelines.requests import GRAY, ClipRequest, Operation

_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Weights of red, green and blue in Pillow's shades of gray."""


def draw_operations(layers: int, magnitude: float, rng: np.random.Generator) -> tuple[Operation, ...]:
    """Draws the operations of a clip, of which each is as likely, with replacement. Where an amount has a sign, it is random.

    Args:
        layers: number of operations.
        magnitude: 0, where they change little or nothing, to 10.
        rng: of the clip.
    """
    names, drawn = list(_OPERATIONS), []
    for _ in range(layers):
        name, sign = names[int(rng.integers(len(names)))], (1 if rng.random() < 0.5 else -1)
        _, amount = _OPERATIONS[name]
        drawn.append(Operation(name, amount(magnitude / 10, sign)))
    return tuple(drawn)


def apply_operations(clips: torch.Tensor, requests: Sequence[ClipRequest]) -> torch.Tensor:
    """Applies the operations of requests to their clips, one after the other.

    Args:
        clips: uint8 (N * views, T, H, W, 3), the views of each request in order. They stay as they are.
        requests: N of them.

    Returns:
        The same shape and type, on the same device: `clips` itself if there is nothing to do.
    """
    if not any(request.operations for request in requests):
        return clips
    changed, start = clips.clone(), 0
    for request in requests:
        for number in range(start, start + request.views):
            clip = clips[number]
            for operation in request.operations:
                function, _ = _OPERATIONS[operation.name]
                clip = function(clip, operation.amount)
            changed[number] = clip
        start += request.views
    return changed


def _identity(clip: torch.Tensor, _: float) -> torch.Tensor:
    return clip


def _auto_contrast(clip: torch.Tensor, _: float) -> torch.Tensor:
    """Stretches each color to 0..255."""
    low, high = clip.amin((0, 1, 2)).float(), clip.amax((0, 1, 2)).float()
    flat = high <= low
    scale = torch.where(flat, 1.0, 255 / (high - low).clamp(min=1))
    return _to_uint8((clip - torch.where(flat, 0.0, low)) * scale)


def _equalize(clip: torch.Tensor, _: float) -> torch.Tensor:
    """Makes the values of each color equally frequent, by Pillow's table."""
    color = 256 * torch.arange(3, device=clip.device, dtype=torch.int32)
    places = (clip + color).reshape(-1)  # in a table of 3 x 256 entries
    counts = torch.zeros(3 * 256, dtype=torch.int32, device=clip.device)
    counts = counts.index_add_(0, places, torch.ones_like(places)).view(3, 256)
    total, order = counts.sum(1, keepdim=True), torch.arange(256, device=clip.device)
    last = torch.where(counts > 0, order, -1).amax(1, keepdim=True)
    step = (total - counts.gather(1, last)) // 255
    before = counts.cumsum(1) - counts
    table = torch.where(step > 0, (step // 2 + before) // step.clamp(min=1), order).clamp(max=255).to(torch.uint8)
    return table.view(-1)[places].view(clip.shape)


def _solarize(clip: torch.Tensor, threshold: float) -> torch.Tensor:
    """Inverts values from the threshold on, 0 to 256."""
    return torch.where(clip.to(torch.int16) < int(threshold), clip, 255 - clip)


def _posterize(clip: torch.Tensor, bits: float) -> torch.Tensor:
    """Keeps the highest bits of each value, 4 to 8."""
    return clip & (0xFF << (8 - int(bits)) & 0xFF)


def _color(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _blend(_grayscale(clip), clip, factor)


def _contrast(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _blend(_grayscale(clip).mean().round(), clip, factor)


def _brightness(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _to_uint8(clip.float() * factor)


def _sharpness(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Blends with smoothed frames, but at their edges."""
    pixels = clip.permute(0, 3, 1, 2).float()  # (T, 3, H, W)
    smooth = pixels.clone()
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = ((9 * F.avg_pool2d(pixels, 3, stride=1) + 4 * inner) / 13).round()
    return _blend(smooth.permute(0, 2, 3, 1), clip, factor)


def _rotate(clip: torch.Tensor, degrees: float) -> torch.Tensor:
    """Counterclockwise, about the middle."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return _sample(clip, (cosine, -sine), (sine, cosine))


def _shear_x(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _sample(clip, (1, factor), (0, 1))


def _shear_y(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _sample(clip, (1, 0), (factor, 1))


def _translate_x(clip: torch.Tensor, share: float) -> torch.Tensor:
    return _sample(clip, (1, 0), (0, 1), shift=(share * clip.shape[2], 0))


def _translate_y(clip: torch.Tensor, share: float) -> torch.Tensor:
    return _sample(clip, (1, 0), (0, 1), shift=(0, share * clip.shape[1]))


def _sample(
    clip: torch.Tensor, row: tuple[float, float], column: tuple[float, float], shift: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    """Takes the pixel at (x, y), counted from the middle, from (row . (x, y), column . (x, y)) + shift, bilinearly.

    What comes from outside is gray.
    """
    height, width = clip.shape[1:3]
    x = torch.arange(width, device=clip.device) + 0.5 - width / 2
    y = (torch.arange(height, device=clip.device) + 0.5 - height / 2)[:, None]
    # From -1 to 1 inside, at any size.
    from_x = (row[0] * x + row[1] * y + shift[0]) * (2 / width)
    from_y = (column[0] * x + column[1] * y + shift[1]) * (2 / height)
    grid = torch.stack((from_x, from_y), -1).expand(len(clip), height, width, 2)
    pixels = clip.permute(0, 3, 1, 2).float()
    sampled = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    outside = torch.maximum(from_x.abs(), from_y.abs()) > 1
    for color, value in enumerate(GRAY):
        sampled[:, color].masked_fill_(outside, value)
    return _to_uint8(sampled.permute(0, 2, 3, 1))


def _grayscale(clip: torch.Tensor) -> torch.Tensor:
    """float (T, H, W, 1): shades of gray, in whole numbers."""
    return sum(weight * clip[..., color : color + 1] for color, weight in enumerate(_LUMA)).round()  # type: ignore[union-attr]


def _blend(start: torch.Tensor, clip: torch.Tensor, factor: float) -> torch.Tensor:
    """From `start` (factor 0) to the clip (1) and beyond."""
    return _to_uint8(start + factor * (clip - start))


def _to_uint8(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _none(strength: float, sign: int) -> float:
    return 0.0


def _enhancement(strength: float, sign: int) -> float:
    """A factor from 0.1 to 1.9."""
    return 1 + 0.9 * sign * strength


def _up_to(most: float) -> Callable[[float, int], float]:
    return lambda strength, sign: sign * strength * most


_OPERATIONS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], Callable[[float, int], float]]] = {
    "identity": (_identity, _none),
    "auto-contrast": (_auto_contrast, _none),
    "equalize": (_equalize, _none),
    "solarize": (_solarize, lambda strength, _: round(256 * (1 - strength))),
    "posterize": (_posterize, lambda strength, _: 8 - round(4 * strength)),
    "color": (_color, _enhancement),
    "contrast": (_contrast, _enhancement),
    "brightness": (_brightness, _enhancement),
    "sharpness": (_sharpness, _enhancement),
    "rotate": (_rotate, _up_to(30.0)),  # degrees
    "shear x": (_shear_x, _up_to(0.3)),
    "shear y": (_shear_y, _up_to(0.3)),
    "translate x": (_translate_x, _up_to(0.45)),  # of the width
    "translate y": (_translate_y, _up_to(0.45)),  # of the height
}
"""Each changes a clip, uint8 (T, H, W, 3), into a new one by an amount whose meaning is its own; the second function gives the
amount for a strength from 0 to 1 and a sign."""
