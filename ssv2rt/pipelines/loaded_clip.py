"""Requests with their data, as a graph takes them; and the graph for machines where DALI has nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ssv2rt.pipelines.hand_over import Counting, HandOver
from ssv2rt.pipelines.requests import ClipRequest

Decoder = Literal["none", "cpu", "mixed"]
"""The decoder of the graph: none, DALI's CPU decoder, or NVDEC."""


class GraphFailed(Exception):
    """DALI raised an error. Its pipeline cannot be used any more, and every batch in it is lost."""


@dataclass(frozen=True, slots=True)
class LoadedClip:
    """A request with its data: either a file for DALI, or frames that PyAV has decoded, cropped and scaled."""

    request: ClipRequest
    handed: HandOver | None = None
    """The file for DALI."""
    counting: Counting = "decoded"
    """How its decoder counts pictures."""
    trim: tuple[int, int] = (0, 0)
    """Columns at the left and at the right that the decoder gets wrong."""
    frames: np.ndarray | None = None
    """uint8 RGB (V * S, T, size, size, 3), flipped already"""


class PassThrough:
    """The graph for clips that PyAV has finished, on a CPU. DALI is not imported."""

    failed = ""

    def __init__(self) -> None:
        self._batches: deque[list[np.ndarray]] = deque()

    def feed(self, clips: Sequence[LoadedClip]) -> None:
        """As `ClipGraph.feed`."""
        self._batches.append([c.frames for c in clips if c.frames is not None])

    def take(self) -> torch.Tensor | None:
        """As `ClipGraph.take`; without a copy where the clips fill one array."""
        frames = self._batches.popleft()
        if not frames:
            return None
        room = frames[0].base
        whole = room is not None and len(room) == len(frames) and all(f.base is room for f in frames)
        return torch.from_numpy(room if whole else np.stack(frames)).flatten(0, 1)
