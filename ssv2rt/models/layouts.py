"""What published files of weights call the weights of a network, and what this package calls them.

A layout is recognized by its names. The names come from the sources of the publishers:

- torchvision's 2D ResNets and timm's; the same names with 3D kernels: IBM's I3D ResNets
  (https://github.com/IBM/action-recognition-pytorch);
- TSM (https://github.com/mit-han-lab/temporal-shift-module): the same names behind `base_model.`, with `net.` before the
  weight of a convolution that follows a temporal shift, and the classifier `new_fc`;
- MMAction2's 2D and 3D ResNets (https://github.com/open-mmlab/mmaction2), whose names begin with `backbone.`, as ours do;
- PyTorchVideo's ResNets and SlowFast (https://github.com/facebookresearch/pytorchvideo);
- torchvision's video ResNets, whose names are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.models.clip_model import KINETICS_MEAN, KINETICS_STD, MEAN, STD
from ssv2rt.models.load_weights import Weights

Colors = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of red, green and blue, 0 to 255."""

IMAGENET: Colors = (MEAN, STD)
KINETICS: Colors = (KINETICS_MEAN, KINETICS_STD)
PYTORCHVIDEO: Colors = ((255 * 0.45,) * 3, (255 * 0.225,) * 3)


class Layout(NamedTuple):
    """The names of one publisher."""

    name: str
    marks: str
    """A pattern that names of this layout match, and those of the layouts behind it in `LAYOUTS` do not."""
    names: tuple[tuple[str, str], ...]
    """Patterns of names, and what takes their place, applied one after the other."""
    colors: Colors | None
    """Which colors its networks expect; None if the file has them."""
    stem_pool: bool
    """Whether all of its networks have a pool after the stem."""


_RESNET = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^(layer\d+\.\d+\.conv\d+)\.(?=weight|bias)", r"\1.0."),
    (r"^(layer\d+\.\d+)\.bn(\d+)\.", r"\1.conv\2.1."),
    (r"^fc\.", "head."),
    (r"^(?=stem|layer)", "backbone."),
)
_TSM = ((r"^base_model\.", ""), (r"^new_fc\.", "head."), (r"\.net\.(?=weight)", "."))
_MMACTION = (
    (r"^backbone\.conv1\.conv\.", "backbone.stem.0."),
    (r"^backbone\.conv1\.bn\.", "backbone.stem.1."),
    (r"\.conv\.(?:net\.)?(?=weight|bias)", ".0."),
    (r"\.bn\.", ".1."),
    (r"^cls_head\.fc_cls\.", "head."),
)
_PYTORCHVIDEO = (
    (r"^blocks\.(\d+)\.multipathway_fusion\.", r"backbone.lateral.\1."),
    (r"^blocks\.(\d+)\.multipathway_blocks\.0\.", r"backbone.slow.blocks.\1."),
    (r"^blocks\.(\d+)\.multipathway_blocks\.1\.", r"backbone.fast.blocks.\1."),
    (r"^blocks\.\d+\.proj\.", "head."),
    (r"^(?=blocks)", "backbone."),
    (r"\bblocks\.0\.", "stem."),
    (r"\bblocks\.(\d+)\.res_blocks\.", r"layer\1."),
    (r"\.branch1_", ".downsample."),
    (r"\.branch2\.(conv|norm)_a\.", r".conv1.\1."),
    (r"\.branch2\.(conv|norm)_b\.", r".conv2.\1."),
    (r"\.branch2\.(conv|norm)_c\.", r".conv3.\1."),
    (r"\.conv(?:_fast_to_slow)?\.(?=weight)", ".0."),
    (r"\.norm\.", ".1."),
)
LAYOUTS = (
    Layout("TSM", r"base_model\.", (*_TSM, *_RESNET), IMAGENET, True),
    Layout("MMAction2", r"cls_head\.|backbone\.conv1\.(?:conv|bn)\.", _MMACTION, IMAGENET, True),
    Layout("ssv2rt", r"backbone\.", (), None, False),
    Layout(
        "PyTorchVideo", r"blocks\.0\.(?:conv|multipathway_blocks\.0\.conv)\.weight", _PYTORCHVIDEO, PYTORCHVIDEO, True
    ),
    Layout("torchvision's video ResNets", r"stem\.0\.weight", _RESNET, KINETICS, False),
    Layout("ResNet", r"conv1\.weight", _RESNET, IMAGENET, True),
)


@dataclass(frozen=True)
class Renamed:
    """The weights of a file under the names of `ClipModel`: `backbone.*`, `head.*` and `normalise.*`."""

    layout: Layout
    weights: Weights
    original: dict[str, str]
    """What the file calls each of them."""
    shifted: frozenset[str]
    """Names of the kernels that the file has behind a temporal shift."""


def to_model_names(weights: Weights, source: str) -> Renamed:
    """Finds the layout of a file by its names, and renames its weights. A name that the layout does not have stays as it is.

    Raises:
        UserError: the layout is unknown, or belongs to networks that this package does not have; or two weights are the same
            weight of the network.
    """
    layout = next((layout for layout in LAYOUTS if any(re.match(layout.marks, name) for name in weights)), None)
    if layout is None:
        raise UserError(
            f"'{source}' is no ResNet: it has {shortened(weights)}; take weights of ssv2rt, IBM's I3D ResNets, TSM, "
            "MMAction2, PyTorchVideo, or torchvision's video or 2D ResNets"
        )
    stem = weights.get("conv1.weight")
    if stem is not None and stem.ndim == 5 and stem.shape[2] != 3:
        raise UserError(
            f"'{source}' is a network of kenshohara's 3D-ResNets-PyTorch: its stem, conv1.weight, is {shape_text(stem)}; "
            "ssv2rt lacks these networks; take IBM's I3D ResNets, whose stem is 64x3x3x7x7"
        )
    original: dict[str, str] = {}
    for name in weights:
        ours = _renamed(name, layout.names)
        if ours in original:
            raise UserError(f"'{source}': {original[ours]} and {name} are the same weight of the network; remove one")
        original[ours] = name
    return Renamed(
        layout,
        {ours: weights[name] for ours, name in original.items()},
        original,
        frozenset(ours for ours, name in original.items() if ".net." in name),
    )


def _renamed(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def shape_text(weight: torch.Tensor) -> str:
    """The shape of a weight, such as 64x3x7x7."""
    return "x".join(map(str, weight.shape)) or "a number"


def shortened(words: Iterable[str], count: int = 3) -> str:
    """The first words, and how many more there are."""
    words = list(words)
    rest = len(words) - count
    return ", ".join(words[:count]) + (f" and {rest} more" if rest > 0 else "")
