"""Parameters, FLOPs, activation memory and training step time of a network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ssv2rt.core.recipes import Clip
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.cost import count_macs


@dataclass(frozen=True)
class ModelCost:
    """Costs of one network, for the clip size and the number of frames of a recipe. Fields are keys of result.json."""

    parameters: int
    stem_parameters: int
    """Weights of the first convolution."""
    input_bytes: int
    """Size in fp32 of the input to the first convolution: one frame of each clip for 2D, all frames for 3D."""
    gflops: float
    """Multiplications plus additions of the forward pass of one clip, in 10^9."""
    memory_mb: float
    """Activations that autograd saves for the backward pass of a batch, in 10^6 bytes."""
    step_seconds: float
    """Median of a training step: forward and backward, without the optimizer."""
    clips_per_second: float
    """Throughput of training."""


def measure_cost(model: ClipModel, clip: Clip, *, batch: int, device: torch.device, steps: int = 5) -> ModelCost:
    """Measures a network in fp32 on one batch of random clips that stays on the device.

    Args:
        model: must already be on the device; its gradients are cleared afterwards.
        clip: size and number of frames.
        batch: batch size.
        device: where to measure.
        steps: number of timed steps, after one warm-up step.
    """
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % model.head.out_features
    model.train()
    saved_bytes = saved_activation_bytes(model, clips, labels)
    seconds = [_timed_step(model, clips, labels) for _ in range(steps + 1)][1:]
    model.zero_grad(set_to_none=True)
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    frames = clip.frames if isinstance(first, nn.Conv3d) else 1
    return ModelCost(
        parameters=sum(p.numel() for p in model.parameters()),
        stem_parameters=first.weight.numel(),
        input_bytes=batch * 3 * frames * clip.size**2 * 4,
        gflops=2 * count_macs(model, frames=clip.frames, size=clip.size) / 1e9,
        memory_mb=saved_bytes / 1e6,
        step_seconds=float(np.median(seconds)),
        clips_per_second=batch / float(np.median(seconds)),
    )


def saved_activation_bytes(model: ClipModel, clips: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that autograd saves for the backward pass. Each storage counts once; parameters do not count."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        F.cross_entropy(model(clips), labels)
    return sum(sizes.values())


def _timed_step(model: ClipModel, clips: torch.Tensor, labels: torch.Tensor) -> float:
    start = time.perf_counter()
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(clips), labels).backward()
    if clips.device.type == "cuda":
        torch.cuda.synchronize(clips.device)
    return time.perf_counter() - start
