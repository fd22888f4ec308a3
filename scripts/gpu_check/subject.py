"""The network that engines are built of, and the clips that they are compared on: made once, for all processes of a check.

Letters: N clips, T frames, S size, K classes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_check import measure
from gpu_check.record import Record
from gpu_check.videos import clips_like_ssv2
from ssv2rt.core.recipes import Clip, Model
from ssv2rt.engines.build import FLOAT
from ssv2rt.engines.quantization import quantise
from ssv2rt.engines.source import Source, source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe

MOST = 32
"""Clips of the largest batch of an engine."""


class Subject:
    """ResNet3D-18 at 16 x 112 x 112 with random weights, whose batch norms have seen clips.

    Args:
        record: says where things are kept, and whether they are tiny.
    """

    def __init__(self, record: Record) -> None:
        self._record, self._tiny = record, record.tiny
        self.clip = Clip(frames=4, size=32) if self._tiny else Clip(frames=16, size=112)
        self.best = 8 if self._tiny else 32
        """Clips of the batch that engines are tuned for."""
        self.labels = tuple(f"class {number}" for number in range(10 if self._tiny else 174))
        self.folder = record.work / "engines"
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def clips(self) -> torch.Tensor:
        """uint8 (N, T, S, S, 3): of the synthetic set."""

        def make() -> torch.Tensor:
            paths = clips_like_ssv2(self._record)[: MOST if self._tiny else 2 * MOST]
            requests = [evaluation_request(path.name, path, probe(path), clip=self.clip) for path in paths]
            made = [torch.from_numpy(decode_clips(r.path, r, size=self.clip.size)[0]) for r in requests]
            return torch.stack(list(itertools.islice(itertools.cycle(made), max(MOST, len(made)))))

        return self._kept("clips", make)

    @cached_property
    def model(self) -> ClipModel:
        """In evaluation mode, on the CPU."""

        def make() -> dict[str, Any]:
            for part in model.modules():
                if isinstance(part, torch.nn.BatchNorm3d):
                    part.momentum = None  # the mean over all that was seen
            where = measure.device()
            with torch.no_grad():
                for batch in self.clips.split(8):
                    model.to(where).train()(batch.to(where))
            return model.cpu().state_dict()

        torch.manual_seed(0)
        model = build_model(Model(width=8 if self._tiny else 64, dropout=0.0), len(self.labels))
        model.load_state_dict(self._kept("weights", make))
        return model.eval()

    @cached_property
    def logits(self) -> torch.Tensor:
        """float32 (N, K): of the clips, by PyTorch in fp32 without TF32."""

        def make() -> torch.Tensor:
            where = measure.device()
            self.model.to(where)
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found = torch.cat([self.model(part.to(where)).cpu() for part in self.clips.split(8)])
            self.model.cpu()
            return found

        return self._kept("logits", make)

    @cached_property
    def source(self) -> Source:
        return source_of_model(self.model, "resnet3d18", self.labels, self.clip)

    @cached_property
    def floats(self) -> Path:
        """The ONNX graph in fp32."""
        path = self.folder / FLOAT
        if not path.exists():
            self.source.export(path)
        return path

    @cached_property
    def integers(self) -> Path:
        """The ONNX graph in int8."""
        path = self.folder / "int8.onnx"
        if not path.exists():
            few: list[np.ndarray] = [part.numpy() for part in self.clips[:8].split(4)]  # ONNX Runtime's CPU is slow
            quantise(self.floats, path, few, method="minmax")
        return path

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What an earlier process has made, or else what is made now."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            temporary = path.with_suffix(".partial")
            torch.save(make(), temporary)
            os.replace(temporary, path)
        return torch.load(path, weights_only=True)
