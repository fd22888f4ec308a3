"""Clips made with other decoding libraries, for comparison: decoded to RGB arrays, then cropped and resized by torch.

Each peer turns a request into a clip, uint8 (T, size, size, 3). Resizing uint8 is the fastest way in torch. The peers "in
float" normalize first and give float32 (3, T, size, size), which is usual since SlowFast and PyTorchVideo.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import av
import numpy as np
import torch
from torch.nn import functional as F

from ssv2rt.core.errors import one_line
from ssv2rt.pipelines.requests import ClipRequest

Peer = Callable[[ClipRequest, int], torch.Tensor]
Reader = Callable[[ClipRequest], torch.Tensor]
"""Returns the whole frames of a request: uint8 (T, 3, H, W)."""


FLOAT = ", in float"


def peers() -> dict[str, Peer | str]:
    """The libraries by name, each with its function, or with the reason why it cannot be used."""
    readers: dict[str, Reader | str] = {
        "PyAV": _read_with_pyav,
        "decord": _make_decord_reader(),
        "torchcodec": _make_torchcodec_reader(),
    }
    found: dict[str, Peer | str] = {}
    for name, reader in readers.items():
        if isinstance(reader, str):
            found[f"{name} + torch"] = reader
        else:
            found[f"{name} + torch"] = partial(_clip_in_uint8, reader)
            found[f"{name} + torch{FLOAT}"] = partial(_clip_in_float, reader)
    return found


def _clip_in_uint8(reader: Reader, request: ClipRequest, size: int) -> torch.Tensor:
    # torch has a fast path for uint8 in and out, which torchvision uses too.
    return _crop_and_resize(reader(request), request, size).permute(0, 2, 3, 1).contiguous()


def _clip_in_float(reader: Reader, request: ClipRequest, size: int) -> torch.Tensor:
    frames = reader(request).float().div_(255)
    frames = frames.sub_(_MEAN).div_(_STD)
    return _crop_and_resize(frames, request, size).permute(1, 0, 2, 3).contiguous()


_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _read_with_pyav(request: ClipRequest) -> torch.Tensor:
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


def _make_decord_reader() -> Reader | str:
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        return one_line(error)

    def read(request: ClipRequest) -> torch.Tensor:
        reader = decord.VideoReader(str(request.path), num_threads=1)
        frames = torch.from_numpy(reader.get_batch(request.frames[0]).asnumpy())
        return frames.permute(0, 3, 1, 2)

    return read


def _make_torchcodec_reader() -> Reader | str:
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, OSError, RuntimeError) as error:
        return one_line(error)

    def read(request: ClipRequest) -> torch.Tensor:
        decoder = VideoDecoder(str(request.path), num_ffmpeg_threads=1)
        return decoder.get_frames_at(request.frames[0].tolist()).data

    return read


def _crop_and_resize(frames: torch.Tensor, request: ClipRequest, size: int) -> torch.Tensor:
    """Crops frames (T, 3, H, W) to the crop of the request and resizes them, like torchvision's `resized_crop`."""
    (crop,) = request.crops
    part = frames[:, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)
