"""Loads the weights of a published network completely, or not at all."""

from __future__ import annotations

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.factorized import shifted_kernels
from ssv2rt.models.layouts import Renamed, shape_text, shortened, to_model_names
from ssv2rt.models.load_weights import Weights

_COUNTERS = "num_batches_tracked"
"""Number of batches that a batch norm has seen, which does not matter to the network."""


def load_published(model: ClipModel, weights: Weights, source: str) -> None:
    """Copies all weights of a file into a network. Its normalization becomes that of the publisher.

    Args:
        model: the network that the publisher trained, with its number of classes; changed in place, and only if there is no
            error.
        weights: as `read_weights` gives them, in one of the layouts of `layouts`.
        source: where they are from, for messages.

    Raises:
        UserError: a weight of the file has no place in the network, a weight of the network is not in the file, two weights
            have different shapes, the file shifts other layers over time, or it holds values that are not finite.
    """
    renamed, targets = to_model_names(weights, source), model.state_dict()
    differences = _differences(renamed, targets, shifted_kernels(model))
    if differences:
        raise UserError(f"'{source}' (layout: {renamed.layout.name}) is not this network: {'; '.join(differences)}")
    for name, weight in renamed.weights.items():
        if not weight.isfinite().all():
            raise UserError(f"'{source}': {renamed.original[name]} holds values that are not finite; get it again")
    with torch.no_grad():
        for name, weight in renamed.weights.items():
            if not name.endswith(_COUNTERS):
                targets[name].copy_(weight.view(targets[name].shape))
    if renamed.layout.colors:
        model.normalise.set_colors(*renamed.layout.colors)


def _differences(renamed: Renamed, targets: Weights, shifted: set[str]) -> list[str]:
    """How a file and a network differ, the most telling first; empty if they agree."""
    found, original = renamed.weights, renamed.original
    ours, theirs = targets["head.bias"], found.get("head.bias", targets["head.bias"])
    differences = []
    classes_differ = ours.shape != theirs.shape
    if classes_differ:
        differences.append(f"it has {len(theirs)} classes, and the network {len(ours)}")
    wanted = [name for name in targets if not name.endswith(_COUNTERS)]
    if renamed.layout.colors:
        wanted = [name for name in wanted if not name.startswith("normalise.")]
    extra = [original[name] for name in found if name not in targets and not name.endswith(_COUNTERS)]
    missing = [name for name in wanted if name not in found]
    other = [
        name
        for name in wanted
        if name in found and not _fits(found[name], targets[name]) and not (classes_differ and name.startswith("head."))
    ]
    if extra:
        differences.append(f"{len(extra)} of its weights have no place ({shortened(extra)})")
    if missing:
        differences.append(f"{len(missing)} weights are not in it ({shortened(missing)})")
    if other:
        texts = [f"{original[name]} is {shape_text(found[name])}, here {shape_text(targets[name])}" for name in other]
        differences.append(f"{len(other)} weights have another shape ({shortened(texts)})")
    if not (extra or missing or other) and renamed.shifted != shifted:
        differences.append(f"it shifts {len(renamed.shifted)} layers over time, and the network {len(shifted)}")
    return differences


def _fits(weight: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether the shapes are equal. A 2D kernel is a 3D kernel of one frame."""
    flat = weight.ndim == 4 and target.ndim == 5 and target.shape[2] == 1
    shape = target.shape[:2] + target.shape[3:] if flat else target.shape
    return weight.is_floating_point() and weight.shape == shape
