"""From requests to batches of clips for PyTorch: prefetches files, decodes, runs the DALI graph and sets bad clips apart."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.decoder_choice import choose_decoder, decodable, make_trust, usual_threads
from ssv2rt.pipelines.decoder_split import balanced_share, is_decoded_by_pyav
from ssv2rt.pipelines.decoder_trust import DecoderTrust
from ssv2rt.pipelines.hand_over import Unsuitable, hand_over, read_coded
from ssv2rt.pipelines.in_flight import InFlight
from ssv2rt.pipelines.loaded_clip import GraphFailed, LoadedClip, PassThrough
from ssv2rt.pipelines.nvdec_limits import EVERYWHERE, limits_of
from ssv2rt.pipelines.prefetch import FileContent, Prefetcher
from ssv2rt.pipelines.rand_augment import apply_operations
from ssv2rt.pipelines.request_source import VideoRequest
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.container import CLIP_ERRORS, is_process_error, process_error, reason_of
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoInfo, probe
from ssv2rt.video.storage import VideoSource

if TYPE_CHECKING:
    from ssv2rt.pipelines.dali_graph import ClipGraph

logger = logging.getLogger(__name__)


_IN_GRAPH = 2
"""Batches in the graph at once, so that it never waits for the next one."""
_MEASURE = 32
"""The most clips of the first batch that the decoders are timed on."""


@dataclass(frozen=True, slots=True)
class BadClip:
    """A request that failed, and its status word."""

    request: ClipRequest | VideoRequest
    reason: str


@dataclass(frozen=True)
class ClipBatch:
    """Clips ready for a model.

    `clips` is uint8 (N * views, T, size, size, 3): the views of each of the `requests`, in order. Requests that failed are in
    `bad`.
    """

    clips: torch.Tensor
    requests: list[ClipRequest]
    bad: list[BadClip] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.clips.dtype == torch.uint8 and self.clips.ndim == 5
        assert len(self.clips) == sum(request.views for request in self.requests)

    def __repr__(self) -> str:
        return f"ClipBatch(clips={tuple(self.clips.shape)} on {self.clips.device}, bad={len(self.bad)})"

    @property
    def labels(self) -> torch.Tensor:
        """int64 (N,): class numbers, on the clips' device."""
        labels = torch.tensor([r.label for r in self.requests], dtype=torch.int64, pin_memory=self.clips.is_cuda)
        return labels.to(self.clips.device, non_blocking=True)  # from pinned memory: no step waits for it


class ClipLoader:
    """Turns batches of requests into batches of clips.

    A clip that cannot be read or decoded is set apart with its reason, and changes no other clip of its batch.

    Args:
        clip: size of the clips, and how many views there are of each video.
        batch: most videos in a batch.
        data: decoder, threads and read-ahead.
        device: where the clips go.
        augment: whether requests may ask for flips, color changes and erasing.
        measured: called with one line on how fast NVDEC and PyAV decode the first batch. PyAV then decodes a share of the
            clips in proportion. This happens where `data.decoder = "auto"` means NVDEC and `data.cpu_share` is not set.
            With None nothing is measured and the share is 0. The share changes which decoder makes a clip, and so its
            rounding, but not its frames or crops.
        decoder_trust: which kinds of videos DALI decodes; a new `DecoderTrust` by default.
        avoid: ids of clips that PyAV must decode.

    Raises:
        UsageError: `data.decoder` does not work on this device.
        UserError: while iterating `batches`: too many files are open, or the storage is gone.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        batch: int,
        data: Data,
        device: torch.device,
        augment: bool = False,
        measured: Callable[[str], None] | None = None,
        decoder_trust: DecoderTrust | None = None,
        avoid: Iterable[str] = (),
    ) -> None:
        self._clip = clip
        self._batch, self._augment, self._data, self._device = batch, augment, data, device
        self._threads = data.threads or usual_threads()
        self._decoder = choose_decoder(data, device)
        self._limits = limits_of(device) if self._decoder == "mixed" else EVERYWHERE
        choosing = data.decoder == "auto" and self._decoder == "mixed" and data.cpu_share is None
        self._tell = measured if choosing else None
        self.share = data.cpu_share or 0.0
        """The share of the clips that PyAV decodes although DALI could, from 0 to 1."""
        self.decoder_trust = decoder_trust or make_trust(data, device)
        self.avoid = set(avoid)
        """Ids of clips that PyAV must decode, since a process crashed while DALI decoded them."""
        self._in_flight = InFlight()
        self._graph = self._build()

    @property
    def decodes(self) -> bool:
        """Whether DALI decodes."""
        return self._decoder != "none"

    def note_in(self, path: Path | None) -> None:
        """Keeps the ids of the clips that DALI is decoding in a file, in case it crashes the process; None stops that."""
        self._in_flight.close()
        self._in_flight = InFlight(path if self.decodes else None)

    def batches(self, batches: Iterable[Sequence[ClipRequest | VideoRequest]]) -> Iterator[ClipBatch]:
        """Yields every batch in order, and prepares the next ones while the caller uses the last."""
        source = iter(batches)
        if self._tell and (first := next(source, None)) is not None:
            tell, self._tell = self._tell, None
            tell(self.measure(first))
            source = chain([first], source)
        files = Prefetcher(readers=self._data.readers, limit=self._data.read_ahead << 20)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        reading: deque[list[tuple[ClipRequest | VideoRequest, Future[FileContent]]]] = deque()
        fetching: deque[list[Future[LoadedClip | BadClip]]] = deque()
        running: deque[list[LoadedClip | BadClip]] = deque()
        at_once = self._read_at_once
        try:
            while True:
                while len(reading) < at_once and (requests := next(source, None)) is not None:
                    reading.append(list(zip(requests, files.ask([r.path for r in requests]), strict=True)))
                while reading and len(fetching) < self._data.prefetch:
                    wanted = reading.popleft()
                    room = self._room(len(wanted))
                    fetching.append([pool.submit(self._fetch, *w, out) for w, out in zip(wanted, room, strict=True)])
                while fetching and len(running) < _IN_GRAPH:
                    running.append(self._settle([future.result() for future in fetching.popleft()], pool))
                    self._feed(running[-1])
                if not running:
                    return
                yield self._finish(running)
        finally:
            files.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            self._drop(len(running))

    def measure(self, requests: Sequence[ClipRequest | VideoRequest]) -> str:
        """Times both decoders on these clips, from file to device, sets the share of PyAV, and returns a line about it."""
        few = requests[:_MEASURE]
        rates = []
        for self.share in (0.0, 1.0):
            once = self._seconds([few])
            times = max(1, min(4, int(1.5 / once)))
            rates.append(times * len(few) / self._seconds([few] * times))
        graph, cpu = rates
        self.share = balanced_share(graph=graph, cpu=cpu)
        return (
            f"decoding: NVDEC makes {graph:.0f} clips a second, PyAV with {self._threads} threads {cpu:.0f}; PyAV decodes "
            f"{self.share:.0%} of the clips (data.cpu_share = {self.share:g} fixes it)"
        )

    def _seconds(self, batches: Sequence[Sequence[ClipRequest | VideoRequest]]) -> float:
        start = time.perf_counter()
        for _ in self.batches(batches):
            pass
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return time.perf_counter() - start

    @property
    def batches_ahead(self) -> int:
        """Batches of requests that may be taken before the first batch of clips is yielded."""
        return self._read_at_once + self._data.prefetch + _IN_GRAPH

    @property
    def _read_at_once(self) -> int:
        """Batches of files that are read at once."""
        return max(1, 2 * self._data.readers // self._batch)

    def _build(self) -> ClipGraph | PassThrough:
        if self._decoder == "none" and not self._augment and self._device.type == "cpu":
            return PassThrough()
        from ssv2rt.pipelines.dali_graph import ClipGraph  # loads DALI, which takes a while

        return ClipGraph(
            size=self._clip.size,
            views=self._clip.views,
            batch=self._batch,
            decoder=self._decoder,
            augment=self._augment,
            threads=self._threads,
            gpu=(self._device.index or 0) if self._device.type == "cuda" else None,
        )

    def _room(self, videos: int) -> np.ndarray:
        """A buffer for clips that PyAV decodes: uint8 (N, V * S, T, size, size, 3).

        It is pinned where its clips are copied to a GPU regularly, so that the copy is asynchronous.
        """
        clip = self._clip
        shape = (videos, clip.views[0] * clip.views[1], clip.frames, clip.size, clip.size, 3)
        if self._device.type == "cuda" and (self._decoder == "none" or self.share):
            pinned: np.ndarray = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pinned
        return np.empty(shape, np.uint8)

    def _fetch(
        self, wanted: ClipRequest | VideoRequest, read: Future[FileContent], out: np.ndarray
    ) -> LoadedClip | BadClip:
        """Hands a clip over to DALI, or decodes it by PyAV."""
        try:
            content = read.result()
        except CLIP_ERRORS as error:
            return _bad(wanted, error)
        try:
            source = content.source
            info: VideoInfo | None = None
            if isinstance(wanted, VideoRequest):
                info = probe(source)
                request = wanted.request(info)
            else:
                request = wanted
            if not self.decodes or request.by_pyav or request.id in self.avoid:
                return self._decode(request, source, out)
            if is_decoded_by_pyav(request.path, self.share):
                return self._decode(request, source, out)
            info = info or probe(source)  # DALI would show black frames where a file has lost its end
            request = request.of_size((info.width, info.height))
            if info.frames <= int(request.frames.max()):
                return BadClip(request, "truncated")
            if not decodable(info, self._decoder, self._limits):
                return self._decode(request, source, out)
            try:
                handed = hand_over(read_coded(source, codec=info.codec, pixels=info.pixels), request.frames)
            except Unsuitable:
                return self._decode(request, source, out)
            if self.decoder_trust.known_bad(handed.kind):
                return self._decode(request, source, out)
            return LoadedClip(request, handed=handed)
        except CLIP_ERRORS as error:
            return _bad(wanted, error)
        finally:
            content.close()

    def _settle(self, flight: list[LoadedClip | BadClip], pool: ThreadPoolExecutor) -> list[LoadedClip | BadClip]:
        """Decides which decoder makes each clip that was handed over.

        This happens in the order of the clips, so that it does not depend on threads.
        """
        settled: list[LoadedClip | BadClip | Future[LoadedClip | BadClip]] = []
        for clip in flight:
            if isinstance(clip, BadClip) or clip.handed is None:
                settled.append(clip)
                continue
            request = clip.request
            decision = self.decoder_trust.decide(request.path, clip.handed)
            if decision.counting is None:
                settled.append(pool.submit(self._decode, request, request.path, self._room(1)[0]))
            else:
                settled.append(replace(clip, counting=decision.counting, trim=decision.trim))
        return [clip.result() if isinstance(clip, Future) else clip for clip in settled]

    def _feed(self, flight: Sequence[LoadedClip | BadClip]) -> None:
        good = _good(flight)
        self._in_flight.add([clip.request.id for clip in good if clip.handed])
        self._graph.feed(good)

    def _take(self) -> torch.Tensor | None:
        clips = self._graph.take()
        self._in_flight.done()
        return clips

    def _decode(self, request: ClipRequest, source: VideoSource, out: np.ndarray) -> LoadedClip | BadClip:
        try:
            return LoadedClip(request, frames=decode_clips(source, request, size=self._clip.size, out=out))
        except CLIP_ERRORS as error:
            return _bad(request, error)

    def _finish(self, running: deque[list[LoadedClip | BadClip]]) -> ClipBatch:
        """Takes the oldest batch from the graph. If the graph has failed, its clips go through a new one, one at a time."""
        flight = running.popleft()
        try:
            clips = self._take()
        except GraphFailed:
            self._in_flight.clear()
            alone = [self._retry(clip) for clip in flight]
            flight = [clip for clip, _ in alone]
            frames = [made for _, made in alone if made is not None]
            clips = torch.cat(frames) if frames else None
            if self._graph.failed:
                self._graph = self._build()
            for later in running:
                self._feed(later)
        bad = [c for c in flight if isinstance(c, BadClip)]
        if clips is None:
            clips = torch.from_numpy(self._room(0)).flatten(0, 1).to(self._device)
        requests = [c.request for c in _good(flight)]
        return ClipBatch(apply_operations(clips, requests), requests, bad)

    def _drop(self, batches: int) -> None:
        """Discards batches that are left in the graph, so that the next caller does not get them."""
        try:
            for _ in range(batches):
                self._take()
        except GraphFailed:
            self._in_flight.clear()
            self._graph = self._build()

    def _retry(self, clip: LoadedClip | BadClip) -> tuple[LoadedClip | BadClip, torch.Tensor | None]:
        """Makes one clip alone by DALI, and if that fails too, by PyAV."""
        if isinstance(clip, BadClip):
            return clip, None
        try:
            return clip, self._alone(clip)
        except GraphFailed:
            self._in_flight.clear()
            second = self._decode(clip.request, clip.request.path, self._room(1)[0])
            return second, self._alone(second) if isinstance(second, LoadedClip) else None

    def _alone(self, clip: LoadedClip) -> torch.Tensor | None:
        if self._graph.failed:
            self._graph = self._build()
        self._feed([clip])
        return self._take()


def _bad(request: ClipRequest | VideoRequest, error: Exception) -> BadClip:
    if is_process_error(error):
        raise process_error(request.path, error) from None
    return BadClip(request, reason_of(error))


def _good(flight: Sequence[LoadedClip | BadClip]) -> list[LoadedClip]:
    return [clip for clip in flight if isinstance(clip, LoadedClip)]
