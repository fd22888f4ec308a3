"""What a network costs: parameters, arithmetic, memory and time of a training step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.core.recipes import Clip
from ssv2rt.models.clip_model import ClipModel


@dataclass(frozen=True)
class ModelCost:
    """Of one network, for clips as the recipe has them."""

    parameters: int
    stem_parameters: int
    """Weights of the first convolution."""
    input_bytes: int
    """Of what the first convolution sees of a batch at once, in fp32: a frame of each clip, or all of them."""
    gflops: float
    """Multiplications and additions, in 10^9, of one clip on its way through the network."""
    memory_mb: float
    """What a training step keeps of a batch for its way back, in 10^6 bytes."""
    step_seconds: float
    """Median time of a training step."""
    clips_per_second: float
    """In training."""


def measure_cost(model: ClipModel, clip: Clip, *, batch: int, device: torch.device, steps: int = 5) -> ModelCost:
    """Measures a network in fp32 on a batch that is in memory already.

    Args:
        model: in place on the device; its gradients are cleared afterwards.
        clip: size and frames.
        batch: clips in a step.
        device: where.
        steps: that are timed, after one to warm up.
    """
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % model.head.out_features
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(clips[:1])
    model.train()
    kept = bytes_kept(model, clips, labels)
    seconds = [_step(model, clips, labels) for _ in range(steps + 1)][1:]
    model.zero_grad(set_to_none=True)
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    frames = clip.frames if isinstance(first, nn.Conv3d) else 1
    return ModelCost(
        parameters=sum(p.numel() for p in model.parameters()),
        stem_parameters=first.weight.numel(),
        input_bytes=batch * 3 * frames * clip.size**2 * 4,
        gflops=counter.get_total_flops() / 1e9,
        memory_mb=kept / 1e6,
        step_seconds=float(np.median(seconds)),
        clips_per_second=batch / float(np.median(seconds)),
    )


def bytes_kept(model: ClipModel, clips: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of the tensors that autograd keeps, each counted once, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(model(clips), labels)
    return sum(sizes.values())


def _step(model: ClipModel, clips: torch.Tensor, labels: torch.Tensor) -> float:
    start = time.perf_counter()
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(clips), labels).backward()
    if clips.device.type == "cuda":
        torch.cuda.synchronize(clips.device)
    return time.perf_counter() - start
