"""Loads published weights into the network that they are of, strictly."""

from __future__ import annotations

import re

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.load_weights import Weights

_IBM = (
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^(layer\d+\.\d+\.conv\d+)\.(?=weight|bias)"), r"\1.0."),
    (re.compile(r"^(layer\d+\.\d+)\.bn(\d+)\."), r"\1.conv\2.1."),
)


def load_published(model: ClipModel, weights: Weights, source: str) -> None:
    """Copies published weights into a network: every weight of the file, to every weight of the network.

    Raises:
        UserError: a weight is missing, is left over, or has another shape.
    """
    targets = {name: t for name, t in model.state_dict().items() if not name.startswith("normalise.")}
    found = {_our_name(name): weight for name, weight in weights.items()}
    wrong = [f"{name} is missing" for name in targets if name not in found and "num_batches" not in name]
    wrong += [f"{name} is not in the network" for name in found if name not in targets]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, here {tuple(target.shape)}"
        for name, target in targets.items()
        if name in found and found[name].shape != target.shape
    ]
    if wrong:
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"'{source}' has other weights than the network: {', '.join(wrong[:3])}{rest}")
    with torch.no_grad():
        for name, weight in found.items():
            targets[name].copy_(weight)


def _our_name(name: str) -> str:
    for pattern, replacement in _IBM:
        name = pattern.sub(replacement, name)
    return f"head.{name[3:]}" if name.startswith("fc.") else f"backbone.{name}"
