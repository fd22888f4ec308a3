"""The arithmetic of a network, as papers count it."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.models.clip_model import ClipModel


def count_macs(model: ClipModel, *, frames: int, size: int) -> int:
    """Multiply-accumulates of one clip of `frames` x `size` x `size` in convolutions and matrix products.

    Papers and model zoos often call these FLOPs. What they count beside them differs: some add batch norms, which engines fold
    into the convolutions.

    Args:
        model: on any device, also on "meta"; it is not changed, and nothing is computed.
        frames: T.
        size: H and W, in pixels.
    """
    shape = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shape(torch.empty(1, frames, size, size, 3, dtype=torch.uint8, device="meta"))
    return int(counter.get_total_flops()) // 2
