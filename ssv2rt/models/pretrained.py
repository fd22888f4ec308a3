"""Initializes a model from pretrained weights: of another run, of a video network, or of an inflated 2D network.

The names of the weights are converted to those of this package. Then each weight that fits the model is copied. A 2D kernel
(O, I, h, w) for a 3D convolution (O, I, t, h, w) is inflated (Carreira and Zisserman 2017,
https://arxiv.org/abs/1705.07750).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ssv2rt.core.class_names import match_classes
from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.factorized import shifted_kernels
from ssv2rt.models.layouts import shape_text, shortened, to_model_names
from ssv2rt.models.load_weights import Weights, read_weights
from ssv2rt.models.resnet3d import ResNet3D

How = Literal["centre", "mean"]

_HEAD = ("head.weight", "head.bias")
"""Weights of the classifier, (K, D) and (K,)."""


@dataclass(frozen=True)
class LoadReport:
    """Which weights were loaded. Names are those of the model, or of the file if the model has no such weight."""

    source: str
    loaded: tuple[str, ...]
    """Copied unchanged."""
    inflated: tuple[str, ...]
    """Inflated from 2D to 3D."""
    skipped: tuple[tuple[str, str], ...]
    """In the file but not used, each with the reason."""
    missing: tuple[str, ...]
    """Not in the file, or skipped. These keep their random initialization."""
    classes: str = ""
    """Which classes the classifier has from the file, as text; empty if it starts fresh."""

    def __str__(self) -> str:
        text = f"{self.source}: {len(self.loaded)} weights loaded, {len(self.inflated)} inflated from 2D to 3D"
        if self.skipped:
            text += (
                f"; {len(self.skipped)} skipped ({shortened([f'{name} {reason}' for name, reason in self.skipped])})"
            )
        if self.missing:
            text += f"; {len(self.missing)} start fresh ({shortened(list(self.missing))})"
        return text + (f"; {self.classes}" if self.classes else "")


def initialize_from(
    model: ClipModel, source: str, *, how: How = "mean", labels: Sequence[str] | None = None
) -> LoadReport:
    """Copies the weights of a file or of a run into a newly initialized model.

    The classifier is copied class by class, by name, if the file has the names of its classes; else it is copied if it has
    the same number of classes. The model gets the mean and standard deviation that published weights expect.

    Args:
        model: changed in place, and only if there is no error.
        source: a file of weights in one of the layouts of `layouts`; or a run, whose best checkpoint is taken.
        how: how 2D kernels are inflated. centre: the kernel is put into the middle frame, and the other frames are zero. A
            video that repeats one frame then has exactly the features of the frame in the 2D network, at any T, if
            the 3D network also pools after the stem (`resnet3d18-pool`, `resnet3d50-pool`). mean: the kernel is divided
            evenly over all frames. Then the same holds only away from the first and last frames, where kernels reach
            into the zero padding.
        labels: class names of the model, in order; by default not known.

    Raises:
        UsageError: there is no such file or run, or `how` is unknown.
        UserError: the file cannot be read, holds values that are not finite, or has less than half of the backbone's weights.
    """
    if how not in get_args(How):
        raise UsageError(f"inflation '{how}'{suggest(how, list(get_args(How)))}")
    weights, theirs = read_weights(source)
    return copy_weights(model, weights, source, how=how, labels=labels, theirs=theirs)


def copy_weights(
    model: ClipModel,
    weights: Weights,
    source: str,
    *,
    how: How = "mean",
    labels: Sequence[str] | None = None,
    theirs: Sequence[str] | None = None,
) -> LoadReport:
    """Does what `initialize_from` does, with weights in memory.

    Args:
        weights: as `read_weights` gives them.
        source: where they are from, for messages.
        theirs: their class names, in order; None if they are not known.
        model, how, labels: as in `initialize_from`.

    Raises:
        UserError: as `initialize_from`.
    """
    renamed, targets = to_model_names(weights, source), model.state_dict()
    found = renamed.weights
    classes = ""
    if {*_HEAD} <= found.keys() and found[_HEAD[0]].shape[1:] == targets[_HEAD[0]].shape[1:]:
        if labels is not None and theirs is not None and len(theirs) == len(found[_HEAD[0]]):
            classes = _arrange_classes(found, targets, theirs, labels, source)
        elif found[_HEAD[0]].shape == targets[_HEAD[0]].shape:
            classes = f"it does not name its classes, so its {len(found[_HEAD[0]])} are taken over in its order"
    fitted: dict[str, torch.Tensor] = {}
    loaded, inflated, skipped = [], [], []
    for name, weight in found.items():
        target = targets.get(name)
        if target is None:
            skipped.append((name, "is not in this model"))
        elif target.shape == weight.shape:
            fitted[name] = weight
            loaded.append(name)
        elif _is_2d_version_of(weight, target):
            fitted[name] = inflate(weight, target.shape[2], how)
            inflated.append(name)
        else:
            skipped.append((name, f"is {shape_text(weight)}, here {shape_text(target)}"))
    _check_enough(model, fitted, skipped, source)
    pools = bool(inflated) or renamed.layout.stem_pool
    if pools and isinstance(model.backbone, ResNet3D) and not model.backbone.has_stem_pool:
        where = "is in the network of the file, but here only in networks such as resnet3d18-pool"
        skipped.append(("the pool after the stem", where))
    if renamed.shifted - shifted_kernels(model):
        skipped.append(("the temporal shift", "is in the network of the file, but here only in tsm-r50 and tsm-r101"))
    bad = next((name for name, weight in fitted.items() if not weight.isfinite().all()), None)
    if bad:
        raise UserError(f"'{source}': {bad} holds values that are not finite; take another file")
    with torch.no_grad():
        for name, weight in fitted.items():
            targets[name].copy_(weight)
    if renamed.layout.colors:
        model.normalise.set_colors(*renamed.layout.colors)
    missing = tuple(
        name
        for name in targets
        if name not in fitted and not name.endswith("num_batches_tracked") and "normalise" not in name
    )
    return LoadReport(source, tuple(loaded), tuple(inflated), tuple(skipped), missing, classes)


def _arrange_classes(found: Weights, targets: Weights, theirs: Sequence[str], ours: Sequence[str], source: str) -> str:
    """Arranges the rows of a classifier for other classes, by name. Classes that it lacks get the rows of `targets`.

    Args:
        found: changed in place; without the classifier if it has none of the classes.
        targets: the weights of the model.
        theirs: class names of `found`.
        ours: class names of `targets`.
        source: where `found` is from, for messages.

    Returns:
        Which classes were taken over, as text.
    """
    match = match_classes(ours, theirs)
    known = torch.from_numpy(match.numbers >= 0)
    if not known.any():
        for name in _HEAD:
            del found[name]
        return f"it has none of the {len(ours)} classes, which all start fresh"
    for name in _HEAD:
        rows = targets[name].clone()
        rows[known] = found[name][torch.from_numpy(match.numbers).long()[known]].to(rows.dtype)
        found[name] = rows
    text = f"{int(known.sum())} of {len(ours)} classes are taken over by name"
    if match.unknown:
        text += f", and the rest start fresh: {match.unknown_text()}"
    spelling = match.spelling_text("the data", f"'{source}'")
    return text + (f"; {spelling}" if spelling else "")


def inflate(weight: torch.Tensor, frames: int, how: How) -> torch.Tensor:
    """Inflates a 2D kernel (O, I, h, w) to 3D (O, I, frames, h, w), as described in `initialize_from`."""
    if how == "mean":
        return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
    result = weight.new_zeros((*weight.shape[:2], frames, *weight.shape[2:]))
    result[:, :, frames // 2] = weight
    return result


def _check_enough(model: ClipModel, fitted: Weights, skipped: list[tuple[str, str]], source: str) -> None:
    sizes = {f"backbone.{name}": weight.numel() for name, weight in model.backbone.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in fitted) / sum(sizes.values())
    if share < 0.5:
        why = shortened([f"{name} {reason}" for name, reason in skipped]) or "the rest is not in it"
        raise UserError(
            f"'{source}' has {share:.0%} of this network's weights, and 50% are needed: {why}; "
            "choose model.name and model.width as it has them"
        )


def _is_2d_version_of(weight: torch.Tensor, target: torch.Tensor) -> bool:
    return weight.ndim == 4 and target.ndim == 5 and weight.shape == target.shape[:2] + target.shape[3:]
