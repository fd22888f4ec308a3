"""The DALI graph: encoded videos or decoded frames in, uint8 clips (N, T, S, S, 3) out, on CPU or GPU.

    encoded --decoders.video--crop+resize--.
                                            >-- flip -- colour -->  clips
    frames, decoded by PyAV ---------------'

The graph is deterministic: everything random arrives with the requests. A clip takes the upper way if DALI has a
decoder for it on this device, the lower one otherwise, within the same batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from torch.utils.dlpack import from_dlpack

from ssv2rt.pipelines.source import ClipRequest, Colour

Decoder = Literal["none", "cpu", "mixed"]
"""Whether the graph decodes, and with what: DALI's CPU decoder, or NVDEC."""

_PLAIN = Colour()
_NOTHING = np.zeros(1, np.uint8)
_NO_FRAMES = np.zeros((1, 1, 1, 3), np.uint8)


class GraphFailed(Exception):
    """DALI raised; its pipeline is dead, and every batch in it is lost."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A request with its data: either the encoded video, or frames cut and scaled already."""

    request: ClipRequest
    encoded: np.ndarray | None = None
    """uint8 (bytes,)"""
    frames: np.ndarray | None = None
    """uint8 RGB (T, S, S, 3)"""


class ClipGraph:
    """A built DALI pipeline with a queue of batches in flight.

    Args:
        size: S, pixels.
        batch: most clips in a batch.
        decoder: what decodes encoded videos; 'none' for a graph that is given frames only.
        augment: whether flips and colour changes may be asked for.
        threads: CPU threads of the graph.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(
        self, *, size: int, batch: int, decoder: Decoder, augment: bool, threads: int, gpu: int | None = None
    ) -> None:
        self._decodes, self._augments, self._gpu = decoder != "none", augment, gpu
        self._pipe = _clip_graph(
            size=size,
            decoder=decoder,
            augment=augment,
            on_gpu=gpu is not None,
            batch_size=batch,
            num_threads=threads,
            device_id=gpu,
            prefetch_queue_depth=1,
        )
        try:
            self._pipe.build()
        except RuntimeError as error:
            raise GraphFailed(_first_line(error)) from None
        self._inputs: deque[object] = deque()  # DALI reads them in place: they live until their batch is out
        self.failed = ""
        """What DALI said when its pipeline died; empty while it lives."""

    def feed(self, clips: Sequence[Fetched]) -> None:
        """Starts a batch, which may be empty. Two batches may be in flight. A failure shows at `take`."""
        if not clips or self.failed:
            self._inputs.append(None)
            return
        inputs: dict[str, list[np.ndarray]] = {
            "frames": [_NO_FRAMES if c.frames is None else c.frames for c in clips],
        }
        requests = [c.request for c in clips]
        if self._decodes:
            inputs["encoded"] = [_NOTHING if c.encoded is None else c.encoded for c in clips]
            inputs["is_encoded"] = [np.array(c.encoded is not None) for c in clips]
            inputs["index"] = [r.frames for r in requests]
            inputs["corner"] = [np.array([r.window.top, r.window.left], np.float32) for r in requests]
            inputs["opposite"] = [
                np.array([r.window.top + r.window.height, r.window.left + r.window.width], np.float32) for r in requests
            ]
        if self._augments:
            inputs["flip"] = [np.array(r.flip) for r in requests]
            inputs["recolour"] = [np.array(r.colour != _PLAIN) for r in requests]
            for name in ("brightness", "contrast", "saturation", "hue"):
                inputs[name] = [np.array(getattr(r.colour, name), np.float32) for r in requests]
        try:
            for name, value in inputs.items():
                self._pipe.feed_input(name, value)
            self._pipe.schedule_run()
        except RuntimeError as error:
            self.failed = _first_line(error)
        self._inputs.append(inputs)

    def take(self) -> torch.Tensor | None:
        """Waits for the oldest batch.

        Returns:
            uint8 (N, T, S, S, 3) on the graph's device, without a copy; None for an empty batch.

        Raises:
            GraphFailed: DALI could not make the batch; this graph cannot be used any more.
        """
        inputs = self._inputs.popleft()
        if self.failed:
            raise GraphFailed(self.failed)
        if inputs is None:
            return None
        try:
            stream = None if self._gpu is None else torch.cuda.current_stream(self._gpu)
            (clips,) = self._pipe.outputs(cuda_stream=stream)
            return from_dlpack(clips.as_tensor())
        except RuntimeError as error:
            self.failed = _first_line(error)
            raise GraphFailed(self.failed) from None


@pipeline_def(enable_conditionals=True)
def _clip_graph(size: int, decoder: Decoder, augment: bool, on_gpu: bool) -> Any:
    clip: Any = fn.external_source(name="frames", ndim=4, dtype=types.DALIDataType.UINT8, layout="FHWC", no_copy=True)
    if on_gpu:
        clip = clip.gpu()
    if decoder != "none":
        encoded = fn.external_source(name="encoded", ndim=1, dtype=types.DALIDataType.UINT8, no_copy=True)
        index = fn.external_source(name="index", ndim=1, dtype=types.DALIDataType.INT32)
        corner = fn.external_source(name="corner", ndim=1, dtype=types.DALIDataType.FLOAT)
        opposite = fn.external_source(name="opposite", ndim=1, dtype=types.DALIDataType.FLOAT)
        is_encoded = fn.external_source(name="is_encoded", ndim=0, dtype=types.DALIDataType.BOOL)
        if is_encoded:
            video = fn.decoders.video(encoded, frames=index, device=decoder)
            clip = fn.resize(video, size=(size, size), roi_start=corner, roi_end=opposite, roi_relative=False)
    if augment:
        flip = fn.external_source(name="flip", ndim=0, dtype=types.DALIDataType.BOOL)
        recolour = fn.external_source(name="recolour", ndim=0, dtype=types.DALIDataType.BOOL)
        change = {
            name: fn.external_source(name=name, ndim=0, dtype=types.DALIDataType.FLOAT)
            for name in ("brightness", "contrast", "saturation", "hue")
        }
        if flip:
            clip = fn.flip(clip, horizontal=1)
        if recolour:
            clip = fn.color_twist(clip, **change)  # type: ignore[call-overload]  # the stub wants names
    return clip


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
