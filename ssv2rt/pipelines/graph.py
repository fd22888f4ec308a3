"""The DALI graph: encoded videos or decoded frames in, uint8 clips (N * V * S, T, size, size, 3) out, on CPU or GPU.

    encoded --decoders.video--crop+resize, S times--.
                                                     >-- flip -- colour -- erase -->  clips
    frames, decoded by PyAV ------------------------'

The graph is deterministic: everything random arrives with the requests. A clip takes the upper way if DALI has a
decoder for it on this device, the lower one otherwise, within the same batch. Letters: N videos, V moments and S squares
of each, T frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from torch.utils.dlpack import from_dlpack

from ssv2rt.pipelines.fetched import Decoder, Fetched, GraphFailed
from ssv2rt.pipelines.request import Colour, Patch

_UINT8, _INT32, _FLOAT, _BOOL = (getattr(types.DALIDataType, name) for name in ("UINT8", "INT32", "FLOAT", "BOOL"))
_COLOURS = ("brightness", "contrast", "saturation", "hue")
_PLAIN = Colour()
_NO_PATCH = Patch(0, 0, 1, 1)
_GREY = [124.0, 116.0, 104.0]
"""What is erased becomes the mean colour of ImageNet, which the model's normalisation makes 0."""
_NOTHING = np.zeros(1, np.uint8)
_NO_FRAMES = np.zeros((1, 1, 1, 3), np.uint8)


class ClipGraph:
    """A built DALI pipeline with a queue of batches in flight.

    Args:
        size: of a clip's frames, in pixels.
        views: V and S.
        batch: most videos in a batch.
        decoder: what decodes encoded videos; 'none' for a graph that is given frames only.
        augment: whether flips and colour changes may be asked for.
        threads: CPU threads of the graph.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(
        self,
        *,
        size: int,
        views: tuple[int, int] = (1, 1),
        batch: int,
        decoder: Decoder,
        augment: bool,
        threads: int,
        gpu: int | None = None,
    ) -> None:
        self._decodes, self._augments, self._gpu = decoder != "none", augment, gpu
        self._views = views
        self._pipe = _clip_graph(
            size=size,
            moments=views[0],
            squares=views[1],
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
        self._read: deque[tuple[torch.cuda.Event, object]] = deque()  # on a GPU, until it has come so far
        self.failed = ""
        """What DALI said when its pipeline died; empty while it lives."""

    def feed(self, clips: Sequence[Fetched]) -> None:
        """Starts a batch, which may be empty. Two batches may be in flight. A failure shows at `take`."""
        if not clips or self.failed:
            self._inputs.append(None)
            return
        inputs = {"frames": [_NO_FRAMES if c.frames is None else _long(c.frames) for c in clips]}
        if self._decodes:
            inputs |= self._to_decode(clips)
        if self._augments:
            inputs |= _to_augment(clips)
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
            uint8 (N * V * S, T, size, size, 3) on the graph's device, without a copy; None for an empty batch. On a GPU it
            is in order on PyTorch's current stream, for which the CPU does not wait.

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
            tensor = from_dlpack(clips.as_tensor())
            if stream is not None:
                self._keep(inputs, stream)
        except RuntimeError as error:
            self.failed = _first_line(error)
            raise GraphFailed(self.failed) from None
        views = self._views[0] * self._views[1]
        return tensor.view(len(tensor) * views, tensor.shape[1] // views, *tensor.shape[2:])

    def _keep(self, inputs: object, stream: torch.cuda.Stream) -> None:
        """Holds on to inputs until the GPU has read them: the batch is on its stream, and need not be ready."""
        self._read.append((stream.record_event(), inputs))
        while self._read and self._read[0][0].query():
            self._read.popleft()

    def _to_decode(self, clips: Sequence[Fetched]) -> dict[str, list[np.ndarray]]:
        requests = [c.request for c in clips]
        # The decoder wants its frames in order; the views' frames are sorted for it, and put back after it.
        orders = [np.argsort(r.frames, axis=None, kind="stable") for r in requests]
        inputs = {
            "encoded": [_NOTHING if c.encoded is None else c.encoded for c in clips],
            "is_encoded": [np.array(c.encoded is not None) for c in clips],
            "index": [r.frames.ravel()[order] for r, order in zip(requests, orders, strict=True)],
        }
        for square in range(self._views[1]):
            windows = [r.windows[square] for r in requests]
            inputs[f"corner_{square}"] = [np.array([w.top, w.left], np.float32) for w in windows]
            inputs[f"opposite_{square}"] = [np.array([w.top + w.height, w.left + w.width], np.float32) for w in windows]
        if self._views != (1, 1):
            inputs["rearrange"] = [
                _rearranged(order, r.frames.shape, self._views[1]) for r, order in zip(requests, orders, strict=True)
            ]
        return inputs


def _long(clips: np.ndarray) -> np.ndarray:
    """The clips (C, T, ...) of a video one after the other: (C * T, ...)."""
    return clips.reshape(-1, *clips.shape[2:])


def _rearranged(order: np.ndarray, shape: tuple[int, ...], squares: int) -> np.ndarray:
    """Where each frame of the clips is in the resized sequences, which hold all sorted frames for each square in turn.

    Returns:
        int32 (V * S * T,): in the order of the clips.
    """
    place = np.empty(order.size, np.int32)
    place[order] = np.arange(order.size)
    moments, length = shape
    offset = order.size * np.arange(squares, dtype=np.int32)
    return np.ascontiguousarray((place.reshape(moments, 1, length) + offset[None, :, None]).ravel())


def _to_augment(clips: Sequence[Fetched]) -> dict[str, list[np.ndarray]]:
    requests = [c.request for c in clips]
    inputs = {
        "flip": [np.array(c.request.flip and c.encoded is not None) for c in clips],
        "recolour": [np.array(r.colour != _PLAIN) for r in requests],
        "erase": [np.array(r.erased is not None) for r in requests],
    }
    for name in _COLOURS:
        inputs[name] = [np.array(getattr(r.colour, name), np.float32) for r in requests]
    patches = [r.erased or _NO_PATCH for r in requests]
    inputs["patch_corner"] = [np.array([p.top, p.left], np.float32) for p in patches]
    inputs["patch_shape"] = [np.array([p.height, p.width], np.float32) for p in patches]
    return inputs


@pipeline_def(enable_conditionals=True)
def _clip_graph(size: int, moments: int, squares: int, decoder: Decoder, augment: bool, on_gpu: bool) -> Any:
    clip = _input("frames", 4, _UINT8, layout="FHWC", no_copy=True)
    if on_gpu:
        clip = clip.gpu()
    if decoder != "none":
        encoded, index = _input("encoded", 1, _UINT8, no_copy=True), _input("index", 1, _INT32)
        corners = [(_input(f"corner_{s}", 1, _FLOAT), _input(f"opposite_{s}", 1, _FLOAT)) for s in range(squares)]
        rearrange = _input("rearrange", 1, _INT32) if moments * squares > 1 else None
        is_encoded = _input("is_encoded", 0, _BOOL)
        if is_encoded:
            clip = _decoded(encoded, index, decoder, size, corners, rearrange)
    if augment:
        flip, recolour, erase = (_input(name, 0, _BOOL) for name in ("flip", "recolour", "erase"))
        change = {name: _input(name, 0, _FLOAT) for name in _COLOURS}
        corner, shape = _input("patch_corner", 1, _FLOAT), _input("patch_shape", 1, _FLOAT)
        if flip:
            clip = fn.flip(clip, horizontal=1)
        if recolour:
            clip = fn.color_twist(clip, **change)
        if erase:
            clip = fn.erase(clip, anchor=corner, shape=shape, normalized=True, axis_names="HW", fill_value=_GREY)
    return clip


def _decoded(
    encoded: Any, index: Any, decoder: Decoder, size: int, corners: list[tuple[Any, Any]], rearrange: Any
) -> Any:
    video = fn.decoders.video(encoded, frames=index, device=decoder)
    cut: list[Any] = [
        fn.resize(video, size=(size, size), roi_start=start, roi_end=end, roi_relative=False) for start, end in corners
    ]
    if rearrange is None:
        return cut[0]
    clips: Any = fn.cat(*cut, axis=0) if len(cut) > 1 else cut[0]
    return fn.sequence_rearrange(clips, new_order=rearrange)


def _input(name: str, ndim: int, dtype: types.DALIDataType, **how: Any) -> Any:
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, **how)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
