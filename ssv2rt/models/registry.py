"""Builds networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ssv2rt.core.errors import UsageError, suggest
from ssv2rt.core.recipes import Model
from ssv2rt.models.c3d import C3D
from ssv2rt.models.clip_model import Backbone, ClipModel
from ssv2rt.models.i3d import I3D
from ssv2rt.models.r2plus1d import FactorizedBlock, FrameBlock, factorized_stem
from ssv2rt.models.recurrent import LateFusionResNet2D, RecurrentResNet2D
from ssv2rt.models.resnet2d import BasicBlock2D, Block2D, Bottleneck2D, ResNet2D
from ssv2rt.models.resnet3d import BasicBlock, Block, Bottleneck, ResNet3D

_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_TORCHVISION_STRIDES = (1, 2, 2, 2)

Build = Callable[[Model], Backbone]


def _resnet3d(depth: int, *, pool: bool = False) -> Build:
    block = BasicBlock if depth < 50 else Bottleneck
    return lambda settings: ResNet3D(
        (block,) * 4, _DEPTHS[depth], width=settings.width, temporal_strides=settings.temporal_strides, pool=pool
    )


def _torchvision_video_resnet(*blocks: Block, factorized: bool = False) -> Build:
    """One of torchvision's video ResNets, from the residual block of each stage."""
    return lambda settings: ResNet3D(
        blocks,
        _DEPTHS[18],
        width=settings.width,
        temporal_strides=_TORCHVISION_STRIDES,
        stem=factorized_stem(settings.width) if factorized else None,
    )


def _resnet2d(depth: int) -> dict[str, Build]:
    """A 2D ResNet with each way to combine its frames: average, LSTM, GRU and late fusion."""
    block: Block2D = BasicBlock2D if depth < 50 else Bottleneck2D
    name, depths = f"resnet2d{depth}", _DEPTHS[depth]
    return {
        name: lambda settings: ResNet2D(block, depths, width=settings.width),
        f"{name}-lstm": lambda settings: RecurrentResNet2D(block, depths, width=settings.width, cell=nn.LSTM),
        f"{name}-gru": lambda settings: RecurrentResNet2D(block, depths, width=settings.width, cell=nn.GRU),
        f"{name}-latefusion": lambda settings: LateFusionResNet2D(block, depths, width=settings.width),
    }


_WITH_TEMPORAL_STRIDES: dict[str, Build] = {
    "resnet3d18": _resnet3d(18),
    "resnet3d34": _resnet3d(34),
    "resnet3d50": _resnet3d(50),
    "resnet3d101": _resnet3d(101),
    "resnet3d18-pool": _resnet3d(18, pool=True),
    "resnet3d50-pool": _resnet3d(50, pool=True),
}
_FRAME_BY_FRAME: dict[str, Build] = {**_resnet2d(18), **_resnet2d(50)}
_FIXED_STRIDES: dict[str, Build] = {
    "r3d_18": _torchvision_video_resnet(*[BasicBlock] * 4),
    "mc3_18": _torchvision_video_resnet(BasicBlock, *[FrameBlock] * 3),
    "r2plus1d_18": _torchvision_video_resnet(*[FactorizedBlock] * 4, factorized=True),
    "c3d": lambda settings: C3D(width=settings.width),
    "i3d": lambda settings: I3D(width=settings.width),
}
_BACKBONES = {**_WITH_TEMPORAL_STRIDES, **_FRAME_BY_FRAME, **_FIXED_STRIDES}


def model_names() -> list[str]:
    return sorted(_BACKBONES)


def build_model(settings: Model, classes: int) -> ClipModel:
    """Builds a newly initialized network for a recipe's `[model]`.

    Raises:
        UsageError: there is no such network, or it does not support a setting.
    """
    name = settings.name
    if name not in _BACKBONES:
        raise UsageError(f"no model '{name}'{suggest(name, model_names())}")
    if name not in _WITH_TEMPORAL_STRIDES and settings.temporal_strides != (1, 1, 1, 1):
        why = "sees one frame at a time" if name in _FRAME_BY_FRAME else "has the strides of its paper"
        raise UsageError(
            f"model.temporal_strides has no meaning for {name}, which {why}: "
            f"remove {list(settings.temporal_strides)}, or take resnet3d18"
        )
    backbone = _BACKBONES[name](settings)
    return ClipModel(backbone, features=backbone.feature_size, classes=classes, dropout=settings.dropout)
