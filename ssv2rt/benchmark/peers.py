"""The same clips as other libraries make them: decoded to RGB arrays, cut and resized by torch.

Each takes a request and gives uint8 (T, size, size, 3). Torch resizes bytes, which is the fastest that it can; the ones
called "in float" go by way of normalised floats (3, T, size, size), as SlowFast and PyTorchVideo have made it usual.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import av
import numpy as np
import torch
from torch.nn import functional as F

from ssv2rt.pipelines.requests import ClipRequest

Peer = Callable[[ClipRequest, int], torch.Tensor]
Reader = Callable[[ClipRequest], torch.Tensor]
"""Gives the frames of a request, uncut: uint8 (T, 3, H, W)."""


FLOAT = ", in float"


def peers() -> dict[str, Peer | str]:
    """The libraries by name, each with its way to make a clip, or with the reason why it cannot."""
    readers: dict[str, Reader | str] = {"PyAV": _read_pyav, "decord": _decord(), "torchcodec": _torchcodec()}
    found: dict[str, Peer | str] = {}
    for name, reader in readers.items():
        if isinstance(reader, str):
            found[f"{name} + torch"] = reader
        else:
            found[f"{name} + torch"] = partial(_in_bytes, reader)
            found[f"{name} + torch{FLOAT}"] = partial(_in_float, reader)
    return found


def _in_bytes(reader: Reader, request: ClipRequest, size: int) -> torch.Tensor:
    # uint8 in, uint8 out: torch has a fast path for it, which torchvision takes too.
    return _cut(reader(request), request, size).permute(0, 2, 3, 1).contiguous()


def _in_float(reader: Reader, request: ClipRequest, size: int) -> torch.Tensor:
    frames = reader(request).float().div_(255)
    frames = frames.sub_(_MEAN).div_(_STD)
    return _cut(frames, request, size).permute(1, 0, 2, 3).contiguous()


_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _read_pyav(request: ClipRequest) -> torch.Tensor:
    wanted = request.frames[0].tolist()
    keep = set(wanted)
    frames: dict[int, np.ndarray] = {}
    with av.open(str(request.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in keep:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number == wanted[-1]:
                break
    return torch.from_numpy(np.stack([frames[n] for n in wanted])).permute(0, 3, 1, 2)


def _decord() -> Reader | str:
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        return _reason(error)

    def by_decord(request: ClipRequest) -> torch.Tensor:
        reader = decord.VideoReader(str(request.path), num_threads=1)
        frames = torch.from_numpy(reader.get_batch(request.frames[0]).asnumpy())
        return frames.permute(0, 3, 1, 2)

    return by_decord


def _torchcodec() -> Reader | str:
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, OSError, RuntimeError) as error:
        return _reason(error)

    def by_torchcodec(request: ClipRequest) -> torch.Tensor:
        decoder = VideoDecoder(str(request.path), num_ffmpeg_threads=1)
        return decoder.get_frames_at(request.frames[0].tolist()).data

    return by_torchcodec


def _cut(frames: torch.Tensor, request: ClipRequest, size: int) -> torch.Tensor:
    """The window of frames (T, 3, H, W), resized as torchvision's `resized_crop` does."""
    (window,) = request.windows
    part = frames[:, :, window.top : window.top + window.height, window.left : window.left + window.width]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
