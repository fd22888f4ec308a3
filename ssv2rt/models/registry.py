"""Builds networks by name. PyTorch is imported only when a network is built, since names are also completed in the shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ssv2rt.core.errors import UsageError, suggest

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Model
    from ssv2rt.models.clip_model import Backbone, ClipModel

    Build = Callable[[Model], Backbone]

_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_TORCHVISION_STRIDES = (1, 2, 2, 2)


def _resnet3d(depth: int, *, pool: bool = False) -> Build:
    def build(settings: Model) -> Backbone:
        from ssv2rt.models.resnet3d import BasicBlock, Bottleneck, ResNet3D

        block = BasicBlock if depth < 50 else Bottleneck
        return ResNet3D(
            [(block,) * count for count in _DEPTHS[depth]],
            width=settings.width,
            temporal_strides=settings.temporal_strides,
            pool=pool,
        )

    return build


def _torchvision_video_resnet(name: Literal["r3d_18", "mc3_18", "r2plus1d_18"]) -> Build:
    """One of torchvision's video ResNets (Tran et al. 2018), which differ in the residual blocks of their stages."""

    def build(settings: Model) -> Backbone:
        from ssv2rt.models.r2plus1d import FactorizedBlock, FrameBlock, factorized_stem
        from ssv2rt.models.resnet3d import BasicBlock, Block, ResNet3D

        stages: dict[str, tuple[Block, ...]] = {
            "r3d_18": (BasicBlock,) * 4,
            "mc3_18": (BasicBlock, FrameBlock, FrameBlock, FrameBlock),
            "r2plus1d_18": (FactorizedBlock,) * 4,
        }
        return ResNet3D(
            [(block,) * count for block, count in zip(stages[name], _DEPTHS[18], strict=True)],
            width=settings.width,
            temporal_strides=_TORCHVISION_STRIDES,
            stem=factorized_stem(settings.width) if name == "r2plus1d_18" else None,
        )

    return build


def _slow(depth: int) -> Build:
    """The slow pathway of SlowFast alone, as in PyTorchVideo."""

    def build(settings: Model) -> Backbone:
        from ssv2rt.models.factorized import temporal_bottleneck
        from ssv2rt.models.pooling import WindowMean
        from ssv2rt.models.resnet3d import ResNet3D, stem_of
        from ssv2rt.models.slowfast import SLOW_KERNELS

        return ResNet3D(
            [(temporal_bottleneck(frames),) * n for frames, n in zip(SLOW_KERNELS, _DEPTHS[depth], strict=True)],
            width=settings.width,
            stem=stem_of(1, settings.width),
            pool=True,
            head_pool=WindowMean(),
        )

    return build


def _tsm(depth: int) -> Build:
    """A 2D ResNet with temporal shifts before the first convolution of its blocks; in deep ones, of every second block."""

    def build(settings: Model) -> Backbone:
        from ssv2rt.models.factorized import shift_bottleneck, temporal_bottleneck
        from ssv2rt.models.resnet3d import ResNet3D, stem_of

        step, still = 2 if depth > 50 else 1, temporal_bottleneck(1)
        return ResNet3D(
            [[still if n % step else shift_bottleneck for n in range(count)] for count in _DEPTHS[depth]],
            width=settings.width,
            stem=stem_of(1, settings.width),
            pool=True,
        )

    return build


def _slowfast(depth: int) -> Build:
    def build(settings: Model) -> Backbone:
        from ssv2rt.models.slowfast import SlowFast

        return SlowFast(_DEPTHS[depth], width=settings.width)

    return build


def _resnet2d(depth: int, head: Literal["average", "lstm", "gru", "latefusion"]) -> Build:
    """A 2D ResNet that sees one frame at a time, and a way to combine the features of the frames."""

    def build(settings: Model) -> Backbone:
        from torch import nn

        from ssv2rt.models.recurrent import LateFusionResNet2D, RecurrentResNet2D
        from ssv2rt.models.resnet2d import BasicBlock2D, Block2D, Bottleneck2D, ResNet2D

        block: Block2D = BasicBlock2D if depth < 50 else Bottleneck2D
        if head == "average":
            return ResNet2D(block, _DEPTHS[depth], width=settings.width)
        if head == "latefusion":
            return LateFusionResNet2D(block, _DEPTHS[depth], width=settings.width)
        cell = nn.LSTM if head == "lstm" else nn.GRU
        return RecurrentResNet2D(block, _DEPTHS[depth], width=settings.width, cell=cell)

    return build


def _c3d(settings: Model) -> Backbone:
    from ssv2rt.models.c3d import C3D

    return C3D(width=settings.width)


def _i3d(settings: Model) -> Backbone:
    from ssv2rt.models.i3d import I3D

    return I3D(width=settings.width)


_WITH_TEMPORAL_STRIDES: dict[str, Build] = {
    "resnet3d18": _resnet3d(18),
    "resnet3d34": _resnet3d(34),
    "resnet3d50": _resnet3d(50),
    "resnet3d101": _resnet3d(101),
    "resnet3d18-pool": _resnet3d(18, pool=True),
    "resnet3d50-pool": _resnet3d(50, pool=True),
    "resnet3d101-pool": _resnet3d(101, pool=True),
}
_FRAME_BY_FRAME: dict[str, Build] = {
    "resnet2d18": _resnet2d(18, "average"),
    "resnet2d18-lstm": _resnet2d(18, "lstm"),
    "resnet2d18-gru": _resnet2d(18, "gru"),
    "resnet2d18-latefusion": _resnet2d(18, "latefusion"),
    "resnet2d50": _resnet2d(50, "average"),
    "resnet2d50-lstm": _resnet2d(50, "lstm"),
    "resnet2d50-gru": _resnet2d(50, "gru"),
    "resnet2d50-latefusion": _resnet2d(50, "latefusion"),
}
_FIXED_STRIDES: dict[str, Build] = {
    "r3d_18": _torchvision_video_resnet("r3d_18"),
    "mc3_18": _torchvision_video_resnet("mc3_18"),
    "r2plus1d_18": _torchvision_video_resnet("r2plus1d_18"),
    "c3d": _c3d,
    "i3d": _i3d,
    "slow-r50": _slow(50),
    "slowfast-r50": _slowfast(50),
    "tsm-r50": _tsm(50),
    "tsm-r101": _tsm(101),
}
_BACKBONES = {**_WITH_TEMPORAL_STRIDES, **_FRAME_BY_FRAME, **_FIXED_STRIDES}


def model_names() -> list[str]:
    """The names of all networks, sorted."""
    return sorted(_BACKBONES)


def check_model_name(name: str) -> None:
    """Raises UsageError if there is no such network."""
    if name not in _BACKBONES:
        raise UsageError(f"no model '{name}'{suggest(name, model_names())}")


def build_model(settings: Model, classes: int) -> ClipModel:
    """Builds a newly initialized network for a recipe's `[model]`.

    Raises:
        UsageError: there is no such network, or it does not support a setting.
    """
    from ssv2rt.models.clip_model import ClipModel

    name = settings.name
    check_model_name(name)
    if name not in _WITH_TEMPORAL_STRIDES and settings.temporal_strides != (1, 1, 1, 1):
        why = "is a 2D network" if name in _FRAME_BY_FRAME else "has the strides of its paper"
        raise UsageError(
            f"model.temporal_strides = {list(settings.temporal_strides)} is not supported by {name}, which {why}: "
            f"remove it, or take resnet3d18"
        )
    backbone = _BACKBONES[name](settings)
    return ClipModel(backbone, features=backbone.feature_size, classes=classes, dropout=settings.dropout)


def count_parameters(classes: int) -> dict[str, int]:
    """Number of parameters of each network with `model.width = 64`, by name."""
    import torch

    from ssv2rt.core.recipes import Model

    with torch.device("meta"):  # allocates no memory for the weights
        networks = {name: build_model(Model(name=name), classes) for name in model_names()}
    return {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
