"""From requests to batches of clips for torch: read or decode ahead, run the graph, set bad clips apart."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ssv2rt.dataset.probe import CLIP_ERRORS, probe, reason_of
from ssv2rt.errors import UsageError
from ssv2rt.pipelines.decode import decode_clip
from ssv2rt.pipelines.graph import ClipGraph, Decoder, Fetched, GraphFailed
from ssv2rt.pipelines.source import ClipRequest, VideoRequest
from ssv2rt.recipes import Data

CODECS: dict[Decoder, frozenset[str]] = {
    "none": frozenset(),
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
    "mixed": frozenset({"vp8", "vp9", "mjpeg", "av1", "mpeg4", "h264", "hevc"}),
}
"""What DALI decodes, by FFmpeg's names; PyAV decodes the rest into the same graph."""


@dataclass(frozen=True, slots=True)
class BadClip:
    """A request that could not be fulfilled, and the word for why."""

    request: ClipRequest | VideoRequest
    reason: str


@dataclass(frozen=True)
class ClipBatch:
    """Clips ready for a model.

    `clips` is uint8 (N, T, S, S, 3) and belongs to `requests`, in order. What could not be made is in `bad`.
    """

    clips: torch.Tensor
    requests: list[ClipRequest]
    bad: list[BadClip] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.clips.dtype == torch.uint8 and self.clips.ndim == 5 and len(self.clips) == len(self.requests)

    def __repr__(self) -> str:
        return f"ClipBatch(clips={tuple(self.clips.shape)} on {self.clips.device}, bad={len(self.bad)})"

    @property
    def labels(self) -> torch.Tensor:
        """int64 (N,): class numbers, on the clips' device."""
        return torch.tensor([r.label for r in self.requests], dtype=torch.int64, device=self.clips.device)


class ClipLoader:
    """Turns batches of requests into batches of clips.

    A clip that cannot be read or decoded is set apart with its reason; its neighbours are what they are without it.

    Args:
        size: S, height and width of clips in pixels.
        batch: most requests in a batch.
        data: decoder, threads and read-ahead.
        device: where the clips go.
        augment: whether requests may ask for flips and colour changes.

    Raises:
        UsageError: `data.decoder` does not work on this device.
    """

    def __init__(self, *, size: int, batch: int, data: Data, device: torch.device, augment: bool = False) -> None:
        self._size, self._batch, self._augment = size, batch, augment
        self._threads = data.threads or os.cpu_count() or 1
        self._ahead = data.read_ahead
        self._device = device
        self._decoder = choose_decoder(data, device)
        self._graph = self._build()

    def batches(self, batches: Iterable[Sequence[ClipRequest | VideoRequest]]) -> Iterator[ClipBatch]:
        """Makes every batch, in order, working ahead while the caller uses the last one."""
        source = iter(batches)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fetch")
        fetching: deque[list[Future[Fetched | BadClip]]] = deque()
        running: deque[list[Fetched | BadClip]] = deque()  # in the graph: two, so that it is never idle
        try:
            while True:
                while len(fetching) < self._ahead and (requests := next(source, None)) is not None:
                    fetching.append([pool.submit(self._fetch, request) for request in requests])
                while fetching and len(running) < 2:
                    running.append([future.result() for future in fetching.popleft()])
                    self._graph.feed(_good(running[-1]))
                if not running:
                    return
                yield self._finish(running)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _build(self) -> ClipGraph:
        return ClipGraph(
            size=self._size,
            batch=self._batch,
            decoder=self._decoder,
            augment=self._augment,
            threads=self._threads,
            gpu=(self._device.index or 0) if self._device.type == "cuda" else None,
        )

    def _fetch(self, wanted: ClipRequest | VideoRequest) -> Fetched | BadClip:
        """Reads a clip's file, and decodes it here unless the graph can."""
        try:
            request = wanted.probed() if isinstance(wanted, VideoRequest) else wanted
            if self._decoder == "none":
                return self._decode(request)
            data = request.path.read_bytes()
            info = probe(data)  # DALI would show black frames where a file has lost its end
        except CLIP_ERRORS as error:
            return BadClip(wanted, reason_of(error))
        if info.frames <= int(request.frames[-1]):
            return BadClip(request, "truncated")
        if info.codec in CODECS[self._decoder]:
            return Fetched(request, encoded=np.frombuffer(data, np.uint8))
        return self._decode(request, data)

    def _decode(self, request: ClipRequest, source: Path | bytes | None = None) -> Fetched | BadClip:
        try:
            return Fetched(request, frames=decode_clip(source or request.path, request, size=self._size))
        except CLIP_ERRORS as error:
            return BadClip(request, reason_of(error))

    def _finish(self, running: deque[list[Fetched | BadClip]]) -> ClipBatch:
        """Takes the oldest batch from the graph. If the graph has died, its clips go through new ones singly."""
        flight = running.popleft()
        try:
            clips = self._graph.take()
        except GraphFailed:
            alone = [self._retry(clip) for clip in flight]
            flight = [clip for clip, _ in alone]
            frames = [made for _, made in alone if made is not None]
            clips = torch.cat(frames) if frames else None
            if self._graph.failed:
                self._graph = self._build()
            for later in running:
                self._graph.feed(_good(later))
        bad = [c for c in flight if isinstance(c, BadClip)]
        if clips is None:
            clips = torch.empty((0, 0, self._size, self._size, 3), dtype=torch.uint8, device=self._device)
        return ClipBatch(clips, [c.request for c in _good(flight)], bad)

    def _retry(self, clip: Fetched | BadClip) -> tuple[Fetched | BadClip, torch.Tensor | None]:
        """One clip alone: through DALI again, and if that kills the graph too, through PyAV."""
        if isinstance(clip, BadClip):
            return clip, None
        try:
            return clip, self._alone(clip)
        except GraphFailed:
            second = self._decode(clip.request)
            return second, self._alone(second) if isinstance(second, Fetched) else None

    def _alone(self, clip: Fetched) -> torch.Tensor | None:
        if self._graph.failed:
            self._graph = self._build()
        self._graph.feed([clip])
        return self._graph.take()


def choose_decoder(data: Data, device: torch.device) -> Decoder:
    """What the graph decodes with, for a recipe's `data.decoder` on a device.

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


def _good(flight: Sequence[Fetched | BadClip]) -> list[Fetched]:
    return [clip for clip in flight if isinstance(clip, Fetched)]
