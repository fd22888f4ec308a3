"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from ssv2rt.errors import UsageError, choices
from ssv2rt.models.clipmodel import ClipModel
from ssv2rt.models.resnet2d import BasicBlock2D, Bottleneck2D, ResNet2D
from ssv2rt.models.resnet3d import BasicBlock, Bottleneck, ResNet3D
from ssv2rt.recipes import Model

_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _resnet3d(depth: int) -> Callable[[Model], ResNet3D]:
    block = BasicBlock if depth < 50 else Bottleneck
    return lambda settings: ResNet3D(
        block, _DEPTHS[depth], width=settings.width, temporal_strides=settings.temporal_strides
    )


def _resnet2d(depth: int) -> Callable[[Model], ResNet2D]:
    block = BasicBlock2D if depth < 50 else Bottleneck2D
    return lambda settings: ResNet2D(block, _DEPTHS[depth], width=settings.width)


_BACKBONES: dict[str, Callable[[Model], ResNet3D | ResNet2D]] = {
    "resnet3d18": _resnet3d(18),
    "resnet3d34": _resnet3d(34),
    "resnet3d50": _resnet3d(50),
    "resnet3d101": _resnet3d(101),
    "resnet2d18": _resnet2d(18),
    "resnet2d50": _resnet2d(50),
}


def model_names() -> list[str]:
    return sorted(_BACKBONES)


def build_model(settings: Model, classes: int) -> ClipModel:
    """A network with fresh weights, for a recipe's `[model]`.

    Raises:
        UsageError: no such name, or a setting that the network does not have.
    """
    if settings.name not in _BACKBONES:
        raise UsageError(f"no model '{settings.name}'{choices(settings.name, model_names())}")
    if settings.name.startswith("resnet2d") and settings.temporal_strides != (1, 1, 1, 1):
        raise UsageError(f"model.temporal_strides has no meaning for {settings.name}, which sees one frame at a time")
    backbone = _BACKBONES[settings.name](settings)
    return ClipModel(backbone, features=backbone.width_out, classes=classes, dropout=settings.dropout)
