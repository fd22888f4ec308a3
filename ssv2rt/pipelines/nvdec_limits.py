"""Which videos NVDEC decodes, as the driver reports it. A refused video would kill the DALI pipeline, so this is asked first.

The structure and the numbers are those of `cuviddec.h` in NVIDIA's Video Codec SDK.
"""

from __future__ import annotations

import ctypes
import itertools
import re
from dataclasses import dataclass

import torch

from ssv2rt.video.probe import VideoInfo

CODECS = {"h264": 4, "vp8": 9, "vp9": 10}
"""FFmpeg's names of what is handed to NVDEC (see `hand_over`), and the numbers of `cudaVideoCodec`."""
CHROMAS = {"420": 1, "422": 2, "444": 3}
"""As in FFmpeg's names of pixel formats, and the numbers of `cudaVideoChromaFormat`."""
BITS = (8, 10, 12)
VP9 = {"Profile 1": "yuv444p", "Profile 2": "yuv420p10le", "Profile 3": "yuv444p10le"}
"""Pixel formats of VP9's profiles; WebM does not say more."""


class Capabilities(ctypes.Structure):
    """CUVIDDECODECAPS."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bits_over_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("units", ctypes.c_ubyte),
        ("formats", ctypes.c_ushort),
        ("most_width", ctypes.c_uint),
        ("most_height", ctypes.c_uint),
        ("most_blocks", ctypes.c_uint),
        ("least_width", ctypes.c_ushort),
        ("least_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte),
        ("counter_bits", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


@dataclass(frozen=True)
class Limit:
    """Smallest and largest pictures, in pixels, and the most blocks of 16 x 16."""

    least: tuple[int, int]
    most: tuple[int, int] = (4096, 4096)
    blocks: int = 65_536

    def holds(self, width: int, height: int) -> bool:
        return (
            self.least[0] <= width <= self.most[0]
            and self.least[1] <= height <= self.most[1]
            and -(-width // 16) * -(-height // 16) <= self.blocks
        )


Limits = dict[tuple[str, int, int], Limit]
"""By codec, number of chroma, and bits."""

EVERYWHERE: Limits = {
    (codec, 1, 8): Limit(least)
    for codec, least in {
        "h264": (48, 16),
        "vp8": (48, 16),
        "vp9": (128, 128),
    }.items()
}
"""What all GPUs since Pascal decode, for where the driver cannot be asked. Source: NVIDIA's NVDEC support matrix."""


def limits_of(device: torch.device) -> Limits:
    """What the NVDEC of a GPU decodes; `EVERYWHERE` where its library is missing."""
    try:
        library = ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return EVERYWHERE
    found: Limits = {}
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # the library asks the context that is current in this thread
        for (codec, number), chroma, bits in itertools.product(CODECS.items(), CHROMAS.values(), BITS):
            known = Capabilities(codec=number, chroma=chroma, bits_over_8=bits - 8)
            if library.cuvidGetDecoderCaps(ctypes.byref(known)) == 0 and known.supported:
                found[codec, chroma, bits] = Limit(
                    (known.least_width, known.least_height), (known.most_width, known.most_height), known.most_blocks
                )
    return found or EVERYWHERE


def takes(info: VideoInfo, limits: Limits) -> bool:
    """Whether NVDEC decodes a video. Where its container does not tell the pixels, they are taken to be the usual ones."""
    usual = VP9.get(info.profile, "yuv420p") if info.codec == "vp9" else "yuv420p"
    kind = re.match(r"yuvj?(4\d\d)p(\d+)?", info.pixels or usual)
    if not kind or kind[1] not in CHROMAS:
        return False
    limit = limits.get((info.codec, CHROMAS[kind[1]], int(kind[2] or 8)))
    return limit is not None and limit.holds(info.width, info.height)
