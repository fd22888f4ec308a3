"""Reference implementations of published ResNets as functions of a state dict, independent of the package."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Random weights that preserve the scale of activations, and batch norms with random statistics."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 2:
            state[name] = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "weight")):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.2
    return state


def shapes_2d(width: int, depths: tuple[int, ...], *, bottleneck: bool, classes: int) -> Shapes:
    """Weight shapes of torchvision's and timm's resnet18 (width 64, 2 2 2 2), resnet50 (3 4 6 3, bottleneck) and so on."""
    shapes: Shapes = {"conv1.weight": (width, 3, 7, 7), **_norm("bn1", width)}
    channels = width
    for stage, depth in enumerate(depths):
        planes, out = width << stage, (width << stage) * (4 if bottleneck else 1)
        for number in range(depth):
            block = f"layer{stage + 1}.{number}"
            kernels = [(planes, channels, 1), (planes, planes, 3), (out, planes, 1)]
            if not bottleneck:
                kernels = [(planes, channels, 3), (planes, planes, 3)]
            for k, (o, i, size) in enumerate(kernels, start=1):
                shapes[f"{block}.conv{k}.weight"] = (o, i, size, size)
                shapes |= _norm(f"{block}.bn{k}", o)
            if number == 0 and (stage > 0 or channels != out):
                shapes[f"{block}.downsample.0.weight"] = (out, channels, 1, 1)
                shapes |= _norm(f"{block}.downsample.1", out)
            channels = out
    return shapes | {"fc.weight": (classes, channels), "fc.bias": (classes,)}


def features_2d(state: State, x: torch.Tensor, *, shift: tuple[int, int] | None = None) -> torch.Tensor:
    """Frames (N, 3, H, W) to features (N, D), in evaluation mode.

    `shift`: T, and that of every how many blocks an eighth of the channels of the input is moved to the previous frame of
    each T frames, and another eighth to the next frame (https://arxiv.org/abs/1811.08383).
    """
    x = F.relu(normed(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), state, "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        number = 0
        while f"layer{stage}.{number}.conv1.weight" in state:
            block = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            count = 3 if f"{block}.conv3.weight" in state else 2
            y = x
            for k in range(1, count + 1):
                kernel = state[f"{block}.conv{k}.weight"]
                here = stride if k == (2 if count == 3 else 1) else 1
                if k == 1 and shift and number % shift[1] == 0:
                    y = _shifted(y, shift[0])
                y = normed(F.conv2d(y, kernel, stride=here, padding=kernel.shape[-1] // 2), state, f"{block}.bn{k}")
                y = F.relu(y) if k < count else y
            if f"{block}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
                x = normed(x, state, f"{block}.downsample.1")
            x = F.relu(x + y)
            number += 1
    return x.mean((2, 3))


def _shifted(x: torch.Tensor, frames: int) -> torch.Tensor:
    clips, moved = x.unflatten(0, (-1, frames)), torch.zeros_like(x).unflatten(0, (-1, frames))
    eighth = x.shape[1] // 8
    for t in range(frames):
        if t + 1 < frames:
            moved[:, t, :eighth] = clips[:, t + 1, :eighth]
        if t > 0:
            moved[:, t, eighth : 2 * eighth] = clips[:, t - 1, eighth : 2 * eighth]
        moved[:, t, 2 * eighth :] = clips[:, t, 2 * eighth :]
    return moved.flatten(0, 1)


def shapes_video(name: str, width: int = 64, classes: int = 400) -> Shapes:
    """Weight shapes of torchvision's r3d_18, mc3_18 and r2plus1d_18."""
    if name == "r2plus1d_18":
        middle = round(45 * width / 64)
        shapes = {"stem.0.weight": (middle, 3, 1, 7, 7), **_norm("stem.1", middle)}
        shapes |= {"stem.3.weight": (width, middle, 3, 1, 1), **_norm("stem.4", width)}
    else:
        shapes = {"stem.0.weight": (width, 3, 3, 7, 7), **_norm("stem.1", width)}
    channels = width
    for stage in (1, 2, 3, 4):
        planes = width * 2 ** (stage - 1)
        for number in (0, 1):
            block = f"layer{stage}.{number}"
            middle = (channels * planes * 3 * 3 * 3) // (channels * 3 * 3 + 3 * planes)
            for k, source in ((1, channels), (2, planes)):
                if name == "r2plus1d_18":
                    shapes[f"{block}.conv{k}.0.0.weight"] = (middle, source, 1, 3, 3)
                    shapes |= _norm(f"{block}.conv{k}.0.1", middle)
                    shapes[f"{block}.conv{k}.0.3.weight"] = (planes, middle, 3, 1, 1)
                else:
                    time = 1 if name == "mc3_18" and stage > 1 else 3
                    shapes[f"{block}.conv{k}.0.weight"] = (planes, source, time, 3, 3)
                shapes |= _norm(f"{block}.conv{k}.1", planes)
            if channels != planes:
                shapes[f"{block}.downsample.0.weight"] = (planes, channels, 1, 1, 1)
                shapes |= _norm(f"{block}.downsample.1", planes)
            channels = planes
    return shapes | {"fc.weight": (classes, channels), "fc.bias": (classes,)}


def features_video(name: str, state: State, x: torch.Tensor) -> torch.Tensor:
    """Clips (N, 3, T, H, W) to features (N, D), in evaluation mode."""
    x = F.conv3d(x, state["stem.0.weight"], stride=(1, 2, 2), padding=(int(name != "r2plus1d_18"), 3, 3))
    x = F.relu(normed(x, state, "stem.1"))
    if name == "r2plus1d_18":
        x = F.relu(normed(F.conv3d(x, state["stem.3.weight"], padding=(1, 0, 0)), state, "stem.4"))
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            block, step = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            time = 1 if name == "mc3_18" else step
            y = x
            for k, (t, s) in ((1, (time, step)), (2, (1, 1))):
                if name == "r2plus1d_18":
                    y = F.conv3d(y, state[f"{block}.conv{k}.0.0.weight"], stride=(1, s, s), padding=(0, 1, 1))
                    y = F.relu(normed(y, state, f"{block}.conv{k}.0.1"))
                    y = F.conv3d(y, state[f"{block}.conv{k}.0.3.weight"], stride=(t, 1, 1), padding=(1, 0, 0))
                else:
                    kernel = state[f"{block}.conv{k}.0.weight"]
                    y = F.conv3d(y, kernel, stride=(t, s, s), padding=(kernel.shape[2] // 2, 1, 1))
                y = normed(y, state, f"{block}.conv{k}.1")
                y = F.relu(y) if k == 1 else y
            if f"{block}.downsample.0.weight" in state:
                x = F.conv3d(x, state[f"{block}.downsample.0.weight"], stride=(time, step, step))
                x = normed(x, state, f"{block}.downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3, 4))


def _norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    one = (channels,)
    return {f"{name}.{part}": one for part in parts} | {f"{name}.num_batches_tracked": ()}


def normed(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    mean, var, weight, bias = (part.view(1, -1, *[1] * (x.ndim - 2)) for part in parts)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias
