"""Files of random weights as the publishers of the catalog save them."""

from __future__ import annotations

from pathlib import Path

import torch

from ssv2rt.published.catalog import Published, class_names
from tests.models import publishers


def publisher_of(entry: Published, width: int = 64) -> publishers.Published:
    """The publisher's network of an entry, with random weights."""
    classes, depth = len(class_names(entry.classes)), "101" if "101" in entry.name else "50"
    if entry.publisher == "PyTorchVideo":
        return (publishers.slowfast if entry.model.name == "slowfast-r50" else publishers.slow)(width, classes)
    if entry.publisher == "IBM":
        return publishers.ibm(depth, width, classes)
    if entry.publisher == "torchvision":
        return publishers.torchvision_video(entry.name, width, classes)
    return publishers.tsm(depth, width, classes, by="mmaction2" if entry.publisher == "MMAction2" else "official")


def save_as_published(entry: Published, folder: Path) -> str:
    """Saves a file in the layout of an entry, at full width. Its logits are of the size of trained ones."""
    network = publisher_of(entry)
    network.state = {  # rows of the classifier with the norm 1
        name: torch.nn.functional.normalize(weight) if weight.ndim == 2 else weight
        for name, weight in network.state.items()
    }
    return network.save(folder)
