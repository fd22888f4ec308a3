"""How a network from elsewhere wants its pixels: (value / scale - mean) / std, for values from 0 to 255."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ssv2rt.core.errors import UsageError

Channels = tuple[float, float, float]
Colors = Literal["rgb", "bgr"]
"""In which order a network takes red, green and blue."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of red, green and blue, in units of `scale`."""

    mean: Channels
    std: Channels
    scale: float = 255.0
    """What pixel values are divided by first. 255: mean and std are for values from 0 to 1; 1: for values from 0 to 255."""

    def __str__(self) -> str:
        return f"mean {_text(self.mean)} and std {_text(self.std)} of pixel values / {self.scale:g}"


PRESETS = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": Normalization((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "half": Normalization((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "0-1": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "-1-1": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""imagenet: networks that started from ImageNet weights. kinetics: torchvision's video networks. half: PyTorchVideo's and
SlowFast's. 0-1 and -1-1: values from 0 to 1, and from -1 to 1."""
ASSUMED = "imagenet"
"""The preset that is taken if none is asked for."""


def normalization(
    preset: str | None, mean: str | None, std: str | None, scale: float | None = None
) -> Normalization | None:
    """The normalization that options ask for; None if they ask for none.

    Args:
        preset: a key of `PRESETS`.
        mean, std: three numbers, separated by commas, for red, green and blue.
        scale: see `Normalization.scale`.

    Raises:
        UsageError: options exclude each other, one lacks another, or a value is malformed or out of range.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"--normalize {preset}: there are {', '.join(PRESETS)}; or give --mean and --std")
        if mean is not None or std is not None or scale is not None:
            raise UsageError(
                f"--normalize {preset} with --mean, --std or --scale: it stands for all three; leave it out"
            )
        return PRESETS[preset]
    if mean is None and std is None and scale is None:
        return None
    if mean is None or std is None:
        raise UsageError("--mean, --std and --scale describe one normalization; give --mean and --std, or --normalize")
    scale = 255.0 if scale is None else scale
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"--scale {scale:g}: give a number above 0, such as 255 or 1")
    found = Normalization(_channels("--mean", mean), _channels("--std", std), scale)
    if any(not 0 <= value <= 255 / scale for value in found.mean):
        hint = " for means of values up to 255 add --scale 1" if scale == 255 else " check --scale"
        raise UsageError(f"--mean {mean}: with --scale {scale:g}, means are from 0 to {255 / scale:g};{hint}")
    if any(not 0 < value <= 1000 / scale for value in found.std):
        hint = " for values up to 255 add --scale 1" if scale == 255 else " check --scale"
        raise UsageError(
            f"--std {std}: with --scale {scale:g}, standard deviations are above 0 and at most {1000 / scale:.3g};{hint}"
        )
    return found


def _channels(option: str, text: str) -> Channels:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: write three numbers for red, green and blue, like 0.5,0.5,0.5") from None
    return red, green, blue


def _text(channels: Channels) -> str:
    return ", ".join(f"{value:g}" for value in channels)
