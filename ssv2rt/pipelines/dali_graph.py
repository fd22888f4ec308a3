"""The DALI graph: encoded videos or decoded frames in, uint8 clips (N * V * S, T, size, size, 3) out, on CPU or GPU.

    handed over --decoders.video--trim--crop+resize, S times--rearrange--.
                                                                          >-- flip -- color -- erase -->  clips
    frames, decoded by PyAV ---------------------------------------------'

The graph is deterministic: every random choice arrives with the requests. A clip takes the upper branch if DALI decodes it on
this device and the lower one otherwise; both kinds may be in one batch.

Letters: N videos, V temporal clips and S spatial crops of each, T frames of a clip, U different frames of a video.
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

from ssv2rt.pipelines.hand_over import HandOver
from ssv2rt.pipelines.loaded_clip import Decoder, GraphFailed, LoadedClip
from ssv2rt.pipelines.requests import GRAY, ColorChange, Patch
from ssv2rt.pipelines.stream_guard import StreamGuard

_UINT8, _INT32, _FLOAT, _BOOL = (getattr(types.DALIDataType, name) for name in ("UINT8", "INT32", "FLOAT", "BOOL"))
_COLORS = ("brightness", "contrast", "saturation", "hue")
_PLAIN = ColorChange()
_NO_PATCH = Patch(0, 0, 1, 1)
_NOTHING = np.zeros(1, np.uint8)
_NO_INDEX = np.zeros(1, np.int32)
_NO_FRAMES = np.zeros((1, 1, 1, 3), np.uint8)


class ClipGraph:
    """A DALI pipeline and the batches that are in flight in it.

    Args:
        size: of a clip's frames, in pixels.
        views: V and S.
        batch: most videos in a batch.
        decoder: what decodes encoded videos; 'none' for a graph that is given frames only.
        augment: whether flips and color changes may be asked for.
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
            spatial_crops=views[1],
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
        self._inputs: deque[object] = deque()  # DALI reads these arrays in place, so they must outlive their batch
        self._guard = StreamGuard()
        self.failed = ""
        """DALI's error message once the pipeline has failed; empty before."""

    def feed(self, clips: Sequence[LoadedClip]) -> None:
        """Schedules a batch, which may be empty. Two batches may be in flight. A failure is raised by `take`."""
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
        """Returns the oldest batch when it is done.

        Returns:
            uint8 (N * V * S, T, size, size, 3) on the graph's device; None for an empty batch. On a GPU it is PyTorch's own
            memory, in order on PyTorch's current stream, for which the CPU does not wait.

        Raises:
            GraphFailed: DALI could not make the batch. This graph cannot be used any more.
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
                # DALI writes to its memory again as soon as the host lets go of it, and does not wait for PyTorch's stream.
                # A copy costs a few microseconds, and PyTorch's allocator knows which stream it is read on.
                given, tensor = tensor, tensor.clone()
                self._guard.until(stream.record_event(), given, clips, inputs)
        except RuntimeError as error:
            self.failed = _first_line(error)
            raise GraphFailed(self.failed) from None
        views = self._views[0] * self._views[1]
        return tensor.view(len(tensor) * views, tensor.shape[1] // views, *tensor.shape[2:])

    def _to_decode(self, clips: Sequence[LoadedClip]) -> dict[str, list[np.ndarray]]:
        inputs: dict[str, list[np.ndarray]] = {
            "encoded": [_NOTHING if c.handed is None else c.handed.file for c in clips],
            "is_encoded": [np.array(c.handed is not None) for c in clips],
            "index": [_NO_INDEX if c.handed is None else c.handed.positions(c.counting) for c in clips],
            "rearrange": [_rearranged(c, self._views[1]) for c in clips],
            "is_trimmed": [np.array(any(c.trim)) for c in clips],
            "trim_start": [np.array([c.trim[0]], np.int32) for c in clips],
            "trim_end": [np.array([c.request.frame_size[0] - c.trim[1]], np.int32) for c in clips],
        }
        for spatial_crop in range(self._views[1]):
            sides = [_sides(c, spatial_crop) for c in clips]
            inputs[f"corner_{spatial_crop}"] = [corner for corner, _ in sides]
            inputs[f"opposite_{spatial_crop}"] = [opposite for _, opposite in sides]
        return inputs


class FrameGraph:
    """DALI's decoder and nothing else: whole frames, of a video at a time.

    Args:
        decoder: 'cpu' or 'mixed'.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(self, decoder: Decoder, gpu: int | None = None) -> None:
        self._pipe = _frame_graph(decoder, batch_size=1, num_threads=1, device_id=gpu, prefetch_queue_depth=1)
        try:
            self._pipe.build()
        except RuntimeError as error:
            raise GraphFailed(_first_line(error)) from None

    def decode(self, handed: HandOver, positions: np.ndarray) -> np.ndarray:
        """Frames at some positions, rising: uint8 RGB (U, H, W, 3). Raises GraphFailed, after which it cannot be used."""
        try:
            self._pipe.feed_input("encoded", [handed.file])
            self._pipe.feed_input("index", [positions])
            (frames,) = self._pipe.run()
            return np.array(frames.as_cpu().at(0))
        except RuntimeError as error:
            raise GraphFailed(_first_line(error)) from None


def _long(clips: np.ndarray) -> np.ndarray:
    """The clips (C, T, ...) of a video one after the other: (C * T, ...)."""
    return clips.reshape(-1, *clips.shape[2:])


def _rearranged(clip: LoadedClip, spatial_crops: int) -> np.ndarray:
    """Indices of the clips' frames in the resized sequences: the U decoded frames of one spatial crop after the other.

    Returns:
        int32 (V * S * T,): in the order of the clips.
    """
    if clip.handed is None:
        return _NO_INDEX
    frames = clip.handed.frames
    place = np.searchsorted(frames, clip.request.frames).astype(np.int32)
    offset = len(frames) * np.arange(spatial_crops, dtype=np.int32)
    return np.ascontiguousarray((place[:, None] + offset[None, :, None]).ravel())


def _sides(clip: LoadedClip, spatial_crop: int) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a crop, (top, left) and (bottom, right), in pixels of the trimmed frame."""
    crop, (left, right) = clip.request.crops[spatial_crop], clip.trim
    width = clip.request.frame_size[0] - left - right
    start, end = max(0, crop.left - left), min(width, crop.left + crop.width - left)
    return np.array([crop.top, start], np.float32), np.array([crop.top + crop.height, end], np.float32)


def _to_augment(clips: Sequence[LoadedClip]) -> dict[str, list[np.ndarray]]:
    requests = [c.request for c in clips]
    inputs = {
        "flip": [np.array(c.request.flip and c.handed is not None) for c in clips],
        "recolor": [np.array(r.color != _PLAIN) for r in requests],
        "erase": [np.array(r.erased is not None) for r in requests],
    }
    for name in _COLORS:
        inputs[name] = [np.array(getattr(r.color, name), np.float32) for r in requests]
    patches = [r.erased or _NO_PATCH for r in requests]
    inputs["patch_corner"] = [np.array([p.top, p.left], np.float32) for p in patches]
    inputs["patch_shape"] = [np.array([p.height, p.width], np.float32) for p in patches]
    return inputs


@pipeline_def(enable_conditionals=True)
def _clip_graph(size: int, spatial_crops: int, decoder: Decoder, augment: bool, on_gpu: bool) -> Any:
    clip = _input("frames", 4, _UINT8, layout="FHWC", no_copy=True)
    if on_gpu:
        clip = clip.gpu()
    if decoder != "none":
        encoded, index = _input("encoded", 1, _UINT8, no_copy=True), _input("index", 1, _INT32)
        corners = [(_input(f"corner_{s}", 1, _FLOAT), _input(f"opposite_{s}", 1, _FLOAT)) for s in range(spatial_crops)]
        start, end, rearrange = (_input(name, 1, _INT32) for name in ("trim_start", "trim_end", "rearrange"))
        is_encoded, is_trimmed = _input("is_encoded", 0, _BOOL), _input("is_trimmed", 0, _BOOL)
        if is_encoded:
            video = fn.decoders.video(encoded, frames=index, device=decoder)
            if is_trimmed:
                video = fn.slice(video, start=start, end=end, axis_names="W")
            cut: list[Any] = [
                fn.resize(video, size=(size, size), roi_start=corner, roi_end=opposite, roi_relative=False)
                for corner, opposite in corners
            ]
            clip = fn.sequence_rearrange(fn.cat(*cut, axis=0) if spatial_crops > 1 else cut[0], new_order=rearrange)
    if augment:
        flip, recolor, erase = (_input(name, 0, _BOOL) for name in ("flip", "recolor", "erase"))
        change = {name: _input(name, 0, _FLOAT) for name in _COLORS}
        corner, shape = _input("patch_corner", 1, _FLOAT), _input("patch_shape", 1, _FLOAT)
        if flip:
            clip = fn.flip(clip, horizontal=1)
        if recolor:
            clip = fn.color_twist(clip, **change)
        if erase:
            clip = fn.erase(
                clip,
                anchor=corner,
                shape=shape,
                normalized=True,
                axis_names="HW",
                fill_value=[float(value) for value in GRAY],
            )
    return clip


@pipeline_def
def _frame_graph(decoder: Decoder) -> Any:
    return fn.decoders.video(_input("encoded", 1, _UINT8), frames=_input("index", 1, _INT32), device=decoder)


def _input(name: str, ndim: int, dtype: types.DALIDataType, **how: Any) -> Any:
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, **how)


def _first_line(error: Exception) -> str:
    """What DALI says of an error: behind the place in the pipeline, if it names that."""
    told = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
