"""Which decoder makes a clip: DALI's on the GPU or the CPU, or PyAV. And how many threads decode."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Data
from ssv2rt.pipelines.decoder_trust import DecoderTrust
from ssv2rt.pipelines.hand_over import CODECS
from ssv2rt.pipelines.loaded_clip import Decoder
from ssv2rt.pipelines.nvdec_limits import EVERYWHERE, Limits, takes
from ssv2rt.video.probe import VideoInfo

if TYPE_CHECKING:
    from ssv2rt.pipelines.dali_graph import FrameGraph

logger = logging.getLogger(__name__)

_DECODED: dict[Decoder, frozenset[str]] = {"none": frozenset(), "cpu": frozenset({"vp8", "vp9"}), "mixed": CODECS}
"""What DALI decodes, by FFmpeg's names; PyAV decodes the rest into the same graph."""


def usual_threads() -> int:
    """One thread per core, divided by the processes that torchrun has started on this machine."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def make_trust(data: Data, device: torch.device) -> DecoderTrust:
    """Which videos DALI decodes on a device, with nothing known yet. Loaders of one process share it."""
    decoder = choose_decoder(data, device)

    def frames() -> FrameGraph:
        from ssv2rt.pipelines.dali_graph import FrameGraph  # loads DALI, which takes a while

        return FrameGraph(decoder, (device.index or 0) if device.type == "cuda" else None)

    return DecoderTrust(decoder, frames, verify=data.verify_decoder, tell=logger.warning)


def choose_decoder(data: Data, device: torch.device) -> Decoder:
    """The decoder of the DALI graph, for a recipe's `data.decoder` and a device.

    Raises:
        UsageError: NVDEC is asked for without a GPU.
    """
    if data.decoder == "nvdec" and device.type != "cuda":
        raise UsageError("data.decoder = 'nvdec' needs an NVIDIA GPU, and none is used here; take 'auto'")
    if data.decoder == "auto":
        # On CPU, one pass of libswscale over the frames that are kept beats DALI's full conversion and resize.
        return "mixed" if device.type == "cuda" else "none"
    choice: dict[str, Decoder] = {"pyav": "none", "dali": "cpu", "nvdec": "mixed"}
    return choice[data.decoder]


def decodable(info: VideoInfo, decoder: Decoder, limits: Limits = EVERYWHERE) -> bool:
    """Whether DALI's decoder shows this video correctly. It ignores rotation and assumes BT.601.

    Args:
        info: of the video.
        decoder: DALI's.
        limits: of NVDEC, where that is the decoder.
    """
    if info.codec not in _DECODED[decoder] or info.rotation or info.matrix not in ("", "bt601"):
        return False
    return decoder != "mixed" or takes(info, limits)
