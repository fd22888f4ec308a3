"""Weights to start from: those of another run, published video networks, and published 2D networks made 3D.

Names of weights are brought to those of this package, and then fitted one by one. A 2D kernel (O, I, h, w) that meets a
3D one (O, I, t, h, w) is inflated (Carreira and Zisserman 2017, https://arxiv.org/abs/1705.07750).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.load_weights import Weights, read_weights
from ssv2rt.models.pretrained_urls import KINETICS_MEAN, KINETICS_STD
from ssv2rt.models.resnet3d import ResNet3D

How = Literal["centre", "mean"]

_FLAT_2D = (
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^(layer\d+\.\d+\.conv\d+)\.(?=weight|bias)"), r"\1.0."),
    (re.compile(r"^(layer\d+\.\d+)\.bn(\d+)\."), r"\1.conv\2.1."),
)
"""torchvision's and timm's names of a 2D ResNet, and those of this package."""


@dataclass(frozen=True)
class Report:
    """What became of each weight. Names are the model's, or the file's where the model has none like it."""

    source: str
    loaded: tuple[str, ...]
    """As they were."""
    inflated: tuple[str, ...]
    """From 2D to 3D."""
    skipped: tuple[tuple[str, str], ...]
    """In the file and not used, each with the reason."""
    missing: tuple[str, ...]
    """Not in the file, or skipped: these keep their fresh weights."""

    def __str__(self) -> str:
        text = f"{self.source}: {len(self.loaded)} weights loaded, {len(self.inflated)} inflated from 2D to 3D"
        if self.skipped:
            text += f"; {len(self.skipped)} skipped ({_few([f'{name} {reason}' for name, reason in self.skipped])})"
        if self.missing:
            text += f"; {len(self.missing)} start fresh ({_few(list(self.missing))})"
        return text


def initialize_from(model: ClipModel, source: str, *, how: How = "mean") -> Report:
    """Puts the weights of a file, or of a published network, into a model with fresh weights.

    A classifier is taken if it has as many classes. Weights of Kinetics bring the mean and the spread of the colours
    that they were trained with; those of ImageNet are what a fresh model has.

    Args:
        model: changed in place, and only if there is no error.
        source: a `.safetensors`, `.pth` or `.pt` file with the weights of this package, of a torchvision video ResNet,
            or of a 2D ResNet as torchvision and timm name them; or the name of a published network, which is downloaded.
        how: how 2D kernels become 3D. centre: the middle frame has all of the kernel, and the others none. A video of
            one repeated frame then has exactly the features that the 2D network has of the frame, at any T, if
            the network pools after its stem as the 2D one does (`resnet3d18-pool`, `resnet3d50-pool`). mean: every
            frame has an equal part. The same then holds only away from the first and the last frames, since kernels
            that reach over them meet zeros.

    Raises:
        UsageError: no such file or network, or an unknown `how`.
        UserError: the file cannot be read or downloaded, or does not have half of the backbone's weights.
    """
    if how not in get_args(How):
        raise UsageError(f"inflation '{how}'{suggest(how, list(get_args(How)))}")
    found = _our_names(read_weights(source), source)
    targets = model.state_dict()
    fitted: dict[str, torch.Tensor] = {}
    loaded, inflated, skipped = [], [], []
    for name, weight in found.items():
        target = targets.get(name)
        if target is None:
            skipped.append((name, "has no place here"))
        elif target.shape == weight.shape:
            fitted[name] = weight
            loaded.append(name)
        elif _is_flat(weight, target):
            fitted[name] = inflate(weight, target.shape[2], how)
            inflated.append(name)
        else:
            skipped.append((name, f"is {_size(weight)}, here {_size(target)}"))
    _check_enough(model, fitted, skipped, source)
    if inflated and isinstance(model.backbone, ResNet3D) and not model.backbone.pools:
        skipped.append(
            ("the pool after the stem", "is in the 2D network, and here only in resnet3d18-pool and 50-pool")
        )
    bad = next((name for name, weight in fitted.items() if not weight.isfinite().all()), None)
    if bad:
        raise UserError(f"'{source}': {bad} holds values that are not finite; take another file")
    with torch.no_grad():
        for name, weight in fitted.items():
            targets[name].copy_(weight)
    missing = tuple(
        name
        for name in targets
        if name not in fitted and not name.endswith("num_batches_tracked") and "normalise" not in name
    )
    return Report(source, tuple(loaded), tuple(inflated), tuple(skipped), missing)


def inflate(weight: torch.Tensor, frames: int, how: How) -> torch.Tensor:
    """A 2D kernel (O, I, h, w) as a 3D one (O, I, t, h, w)."""
    if how == "mean":
        return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
    result = weight.new_zeros((*weight.shape[:2], frames, *weight.shape[2:]))
    result[:, :, frames // 2] = weight
    return result


def _our_names(weights: Weights, source: str) -> Weights:
    """The same weights as `backbone.*`, `head.*` and `normalise.*`.

    Raises:
        UserError: the names are of no kind that is known.
    """
    if any(name.startswith("backbone.") for name in weights):
        return weights
    if "stem.0.weight" in weights and weights["stem.0.weight"].ndim == 5:
        mean, std = torch.tensor(KINETICS_MEAN), torch.tensor(KINETICS_STD)
        colours = {"normalise.mean": mean.view(1, 3, 1, 1, 1), "normalise.scale": 1 / std.view(1, 3, 1, 1, 1)}
        return {**colours, **_with_head(weights)}
    if "conv1.weight" in weights:
        renamed = {}
        for name, weight in weights.items():
            for pattern, replacement in _FLAT_2D:
                name = pattern.sub(replacement, name)
            renamed[name] = weight
        return _with_head(renamed)
    raise UserError(
        f"'{source}' is no ResNet: it has {_few(list(weights))}; take weights of ssv2rt, of torchvision's video ResNets, "
        "or of a 2D ResNet"
    )


def _with_head(weights: Weights) -> Weights:
    return {
        f"head.{name[3:]}" if name.startswith("fc.") else f"backbone.{name}": weight for name, weight in weights.items()
    }


def _check_enough(model: ClipModel, fitted: Weights, skipped: list[tuple[str, str]], source: str) -> None:
    sizes = {f"backbone.{name}": weight.numel() for name, weight in model.backbone.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in fitted) / sum(sizes.values())
    if share < 0.5:
        why = _few([f"{name} {reason}" for name, reason in skipped]) or "the rest is not in it"
        raise UserError(
            f"'{source}' has {share:.0%} of this network's weights, and 50% are needed: {why}; "
            "choose model.name and model.width as it has them"
        )


def _is_flat(weight: torch.Tensor, target: torch.Tensor) -> bool:
    return weight.ndim == 4 and target.ndim == 5 and weight.shape == target.shape[:2] + target.shape[3:]


def _size(weight: torch.Tensor) -> str:
    return "x".join(map(str, weight.shape)) or "a number"


def _few(words: list[str], count: int = 3) -> str:
    rest = len(words) - count
    return ", ".join(words[:count]) + (f" and {rest} more" if rest > 0 else "")
