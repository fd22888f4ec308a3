"""Published networks with random weights, and the files that their publishers would save.

The networks of IBM, TSM and torchvision are computed here from the facts of their sources; PyTorchVideo's are its own classes.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssv2rt.core.recipes import Model
from ssv2rt.models.clip_model import KINETICS_MEAN, KINETICS_STD, ClipModel
from ssv2rt.models.registry import build_model
from tests.models.reference import (
    Shapes,
    State,
    features_2d,
    features_video,
    normed,
    random_state,
    shapes_2d,
    shapes_video,
)

DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
PYTORCHVIDEO = ((114.75,) * 3, (57.375,) * 3)


@dataclass
class Published:
    """A published network with random weights, batch-norm statistics and affine parameters."""

    name: str
    """Of the network in this package."""
    width: int
    classes: int
    state: State
    """What the file holds, under the names in the file, without prefixes."""
    logits: Callable[[State, torch.Tensor], torch.Tensor]
    """The publisher's network: normalized clips (N, 3, T, H, W) to logits (N, K)."""
    colors: tuple[tuple[float, ...], tuple[float, ...]]
    prefix: str = ""
    key: str = ""
    suffix: str = ".pth"
    more: dict[str, Any] = field(default_factory=dict)
    """What else is in the file."""

    def save(self, folder: Path) -> str:
        """Saves the file as the publisher does."""
        path = folder / f"weights{self.suffix}"
        state = {self.prefix + name: weight for name, weight in self.state.items()}
        torch.save({self.key: state, **self.more} if self.key else state, path)
        return str(path)

    def ours(self) -> ClipModel:
        """The network of this package, newly initialized."""
        torch.manual_seed(1)
        return build_model(Model(name=self.name, width=self.width), self.classes).eval()

    def expected(self, clips: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Logits of uint8 clips (N, T, H, W, 3) in the publisher's network."""
        mean, std = (torch.tensor(values, dtype=dtype).view(1, 3, 1, 1, 1) for values in self.colors)
        state = {
            name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in self.state.items()
        }
        with torch.inference_mode():
            return self.logits(state, (clips.permute(0, 4, 1, 2, 3).to(dtype) - mean) / std)


def _random(shapes: Shapes) -> State:
    """Random weights, with kernels small enough that the sums of many residual blocks do not hide what one block adds."""
    return {name: 0.7 * weight if weight.ndim > 2 else weight for name, weight in random_state(shapes).items()}


def ibm(depth: str, width: int, classes: int) -> Published:
    """https://github.com/IBM/action-recognition-pytorch: i3d_resnet without temporal stride."""
    shapes = {}
    for name, shape in shapes_2d(width, DEPTHS[depth], bottleneck=True, classes=classes).items():
        temporal = 3 if name == "conv1.weight" or ".conv2." in name else 1
        shapes[name] = (*shape[:2], temporal, *shape[2:]) if len(shape) == 4 else shape
    return Published(
        f"resnet3d{depth}-pool",
        width,
        classes,
        _random(shapes),
        _ibm_logits,
        IMAGENET,
        prefix="module.",
        key="state_dict",
        suffix=".pth.tar",
        more={"epoch": 75, "arch": f"i3d-resnet-{depth}", "best_top1": np.float64(62.84), "optimizer": {"state": {}}},
    )


def _ibm_logits(state: State, x: torch.Tensor) -> torch.Tensor:
    x = F.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=(1, 3, 3))
    x = F.max_pool3d(F.relu(normed(x, state, "bn1")), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for block in dict.fromkeys(found[0] for name in state if (found := re.match(r"layer\d+\.\d+", name))):
        stride = (1, 2, 2) if block.endswith(".0") and block[5] != "1" else (1, 1, 1)
        y = F.relu(normed(F.conv3d(x, state[f"{block}.conv1.weight"]), state, f"{block}.bn1"))
        y = F.conv3d(y, state[f"{block}.conv2.weight"], stride=stride, padding=1)
        y = F.relu(normed(y, state, f"{block}.bn2"))
        y = normed(F.conv3d(y, state[f"{block}.conv3.weight"]), state, f"{block}.bn3")
        if f"{block}.downsample.0.weight" in state:
            x = F.conv3d(x, state[f"{block}.downsample.0.weight"], stride=stride)
            x = normed(x, state, f"{block}.downsample.1")
        x = F.relu(x + y)
    frames = F.linear(x.mean((3, 4)).transpose(1, 2), state["fc.weight"], state["fc.bias"])
    return frames.mean(1)  # logits of each frame, averaged


def tsm(depth: str, width: int, classes: int, *, by: str = "official") -> Published:
    """https://github.com/mit-han-lab/temporal-shift-module, and the same network in MMAction2."""
    step = 2 if depth == "101" else 1
    state = _random(shapes_2d(width, DEPTHS[depth], bottleneck=True, classes=classes))

    def is_shifted(name: str) -> bool:
        found = re.fullmatch(r"layer\d+\.(\d+)\.conv1\.weight", name)
        return found is not None and int(found[1]) % step == 0

    def official(name: str) -> str:
        if name.startswith("fc."):
            return f"new_{name}"
        return "base_model." + (name.replace("conv1.", "conv1.net.") if is_shifted(name) else name)

    def mmaction(name: str) -> str:
        if name.startswith("fc."):
            return f"cls_head.{name.replace('fc', 'fc_cls')}"
        net = "net." if is_shifted(name) else ""
        name = re.sub(r"conv(\d)\.(?=weight)", rf"conv\1.conv.{net}", name)
        name = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", name)
        return "backbone." + name.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")

    rename = official if by == "official" else mmaction
    names = {rename(name): name for name in state}

    def logits(state: State, x: torch.Tensor) -> torch.Tensor:
        plain = {names[name]: weight for name, weight in state.items()}
        frames = features_2d(plain, x.transpose(1, 2).flatten(0, 1), shift=(x.shape[2], step))
        return F.linear(frames, plain["fc.weight"], plain["fc.bias"]).unflatten(0, (-1, x.shape[2])).mean(1)

    return Published(
        f"tsm-r{depth}",
        width,
        classes,
        {name: state[old] for name, old in names.items()},
        logits,
        IMAGENET,
        prefix="module." if by == "official" else "",
        key="state_dict",
        more={"epoch": 45, "best_prec1": np.float64(61.2)} if by == "official" else {"meta": {"epoch": 50}},
    )


def torchvision_video(name: str, width: int, classes: int) -> Published:
    """torchvision.models.video."""

    def logits(state: State, x: torch.Tensor) -> torch.Tensor:
        return F.linear(features_video(name, state, x), state["fc.weight"], state["fc.bias"])

    state = _random(shapes_video(name, width, classes))
    return Published(name, width, classes, state, logits, (KINETICS_MEAN, KINETICS_STD))


def slow(width: int, classes: int, *, prefix: str = "") -> Published:
    """PyTorchVideo's Slow R50 8x8."""
    create = pytorchvideo("resnet").create_resnet
    peer = create(
        stem_dim_out=width,
        stem_conv_kernel_size=(1, 7, 7),
        head_pool_kernel_size=(8, 7, 7),
        model_num_class=classes,
    ).eval()

    def logits(state: State, x: torch.Tensor) -> torch.Tensor:
        return _filled(peer, state, x)(x)

    return _pytorchvideo("slow-r50", width, classes, peer, logits, prefix)


def slowfast(width: int, classes: int) -> Published:
    """PyTorchVideo's SlowFast R50 8x8, whose frames are picked as its SSv2 recipe does."""
    create = pytorchvideo("slowfast").create_slowfast
    peer = create(stem_dim_outs=(width, width // 8), model_num_class=classes).eval()

    def logits(state: State, x: torch.Tensor) -> torch.Tensor:
        frames = torch.linspace(0, x.shape[2] - 1, x.shape[2] // 4).long()
        return _filled(peer, state, x)([x[:, :, frames], x])

    return _pytorchvideo("slowfast-r50", width, classes, peer, logits)


def _filled(peer: Any, state: State, x: torch.Tensor) -> Any:
    """A copy of a peer with these weights, whose pools are no larger than the map of a small clip.

    The pools of published clips stay as they are.
    """
    peer = copy.deepcopy(peer).to(x.dtype)
    peer.load_state_dict(state)
    for module in peer.modules():
        if isinstance(module, torch.nn.AvgPool3d):
            time = x.shape[2] // (4 if module.kernel_size[0] == 8 and len(peer.blocks) == 7 else 1)
            side = -(-x.shape[3] // 32)
            module.kernel_size = tuple(map(min, module.kernel_size, (time, side, side)))
    return peer


def _pytorchvideo(
    name: str,
    width: int,
    classes: int,
    peer: Any,
    logits: Callable[[State, torch.Tensor], torch.Tensor],
    prefix: str = "",
) -> Published:
    shapes: Shapes = {key: tuple(weight.shape) for key, weight in peer.state_dict().items()}
    state = _random(shapes)
    return Published(
        name, width, classes, state, logits, PYTORCHVIDEO, prefix=prefix, key="model_state", suffix=".pyth"
    )


def pytorchvideo(module: str) -> ModuleType:
    """A module of pytorchvideo.models. It imports one class of torchvision, which these networks do not use."""
    pytest.importorskip("pytorchvideo", reason="needs `pip install pytorchvideo==0.1.5`")
    with _stubbed_torchvision():
        return importlib.import_module(f"pytorchvideo.models.{module}")


@contextmanager
def _stubbed_torchvision() -> Iterator[None]:
    names = ("torchvision", "torchvision.ops")
    missing = [name for name in names if name not in sys.modules and importlib.util.find_spec("torchvision") is None]
    for name in missing:
        stub: Any = ModuleType(name)
        stub.RoIAlign = torch.nn.Identity
        sys.modules[name] = stub
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
