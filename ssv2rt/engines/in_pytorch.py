"""A network in PyTorch in place of an engine: for runs without an engine, and for machines for which none can be built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ssv2rt.core.hardware import gpu_architecture
from ssv2rt.core.recipes import BatchProfile, Clip
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.models.clip_model import ClipModel

BATCH = {"cpu": 1, "cuda": 32}
"""Clips in a batch, by device type. Batches are padded, and on a CPU larger ones are hardly faster."""


class PyTorchRunner(Runner):
    """Runs a network in channels-last-3d. Like an engine, it returns its outputs on the CPU.

    Args:
        network: in evaluation mode; it is moved to the device.
        device: where it runs.
        dtype: bfloat16 or float16 for automatic mixed precision; float32 for none.
    """

    in_flight = 2

    def __init__(self, network: ClipModel, device: torch.device, dtype: torch.dtype) -> None:
        self._network, self._device, self._dtype = network.channels_last().to(device), device, dtype

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        mixed = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with torch.inference_mode(), mixed:
            embedding = self._network.features(clips.to(self._device))
            logits = self._network.head(embedding)
        return lambda: Outputs(logits.float().cpu(), embedding.float().cpu())


def bundle_in_memory(
    network: ClipModel,
    name: str,
    *,
    labels: Sequence[str],
    clip: Clip,
    device: torch.device,
    precision: str,
    batch: int = 0,
    weights_sha256: str = "",
) -> Bundle:
    """The facts of an engine for a network in PyTorch. There are no files.

    Args:
        network: the network.
        name: of the network.
        labels: class names in order.
        clip: how clips are read.
        device: where it runs.
        precision: as in an engine recipe.
        batch: clips in a batch; 0 for the usual number of the device.
        weights_sha256: of the weights file, if there is one.
    """
    batch = batch or BATCH[device.type]
    info = BundleInfo(
        backend="pytorch",
        backend_version=torch.__version__,
        precision=precision,
        target=gpu_architecture(device) if device.type == "cuda" else "cpu",
        model=name,
        input="frames",
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=BatchProfile(min=1, best=batch, max=batch),
        clip=clip,
        labels=tuple(labels),
        embedding=network.head.in_features,
        weights_sha256=weights_sha256,
        files={},
        onnx_file="",
        engine_file="",
        rebuild="",
    )
    return Bundle(Path(), info)
