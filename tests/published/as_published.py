"""Files of random weights as the publishers of the catalog save them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import Published, class_names
from tests.models import publishers


def save_as_published(entry: Published, folder: Path) -> str:
    """Saves a file in the layout of an entry, at full width. Its logits are of the size of trained ones."""
    classes, depth = len(class_names(entry.classes)), "101" if "101" in entry.name else "50"
    if entry.publisher == "PyTorchVideo":
        path = folder / "weights.pyth"
        torch.manual_seed(0)
        state = with_small_logits(as_pytorchvideo(build_model(entry.model, classes)))
        torch.save({"model_state": state, "epoch": 30}, path)
        return str(path)
    if entry.publisher == "IBM":
        network = publishers.ibm(depth, 64, classes)
    elif entry.publisher == "torchvision":
        network = publishers.torchvision_video(entry.name, 64, classes)
    else:
        by = "mmaction2" if entry.publisher == "MMAction2" else "official"
        network = publishers.tsm(depth, 64, classes, by=by)
    network.state = with_small_logits(network.state)
    return network.save(folder)


def with_small_logits(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with a classifier whose rows have the norm 1."""
    return {
        name: torch.nn.functional.normalize(weight) if weight.ndim == 2 else weight for name, weight in state.items()
    }


def as_pytorchvideo(model: ClipModel) -> dict[str, torch.Tensor]:
    """The weights under the names of PyTorchVideo."""
    pathways = {"backbone.": "", "backbone.slow.": "multipathway_blocks.0.", "backbone.fast.": "multipathway_blocks.1."}
    found = {}
    for name, weight in model.state_dict().items():
        name = re.sub(r"^backbone\.lateral\.(\d)\.0", r"blocks.\1.multipathway_fusion.conv_fast_to_slow", name)
        name = re.sub(r"^backbone\.lateral\.(\d)\.1", r"blocks.\1.multipathway_fusion.norm", name)
        for ours, theirs in pathways.items():
            name = re.sub(rf"^{ours}stem\.0", f"blocks.0.{theirs}conv", name)
            name = re.sub(rf"^{ours}stem\.1", f"blocks.0.{theirs}norm", name)
            name = re.sub(rf"^{ours}layer(\d)\.", rf"blocks.\1.{theirs}res_blocks.", name)
        for number, letter in enumerate("abc", start=1):
            name = name.replace(f"conv{number}.0", f"branch2.conv_{letter}").replace(
                f"conv{number}.1", f"branch2.norm_{letter}"
            )
        name = name.replace("downsample.0", "branch1_conv").replace("downsample.1", "branch1_norm")
        found[re.sub(r"^head\.", "blocks.6.proj.", name)] = weight
    return {name: weight for name, weight in found.items() if not name.startswith("normalise")}
