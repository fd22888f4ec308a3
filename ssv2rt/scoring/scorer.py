"""Scores whole videos with an engine: one row for each, also for those that cannot be decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.decoder_trust import Decision
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest
from ssv2rt.scoring.predictor import Predictor, Wait
from ssv2rt.scoring.row import Row, named_row
from ssv2rt.scoring.video_sources import Video

Task = tuple[int, Video]
"""A video with its number in the run, which identifies it: two names may look the same as text."""


class Scorer:
    """Decodes videos and scores them with an engine.

    Args:
        predictor: the engine.
        data: decoder, threads and read-ahead.
        clip: how clips are sampled from a video.
        trusted: which kinds of videos DALI is trusted with, as an earlier worker found out. See `DecoderTrust.decisions`.
    """

    def __init__(
        self, predictor: Predictor, *, data: Data, clip: Clip, trusted: Mapping[str, Decision] | None = None
    ) -> None:
        self._predictor, self._clip = predictor, clip
        self.videos = max(1, predictor.batch // (clip.views[0] * clip.views[1]))
        """Videos in a batch."""
        self._loader = ClipLoader(clip=clip, batch=self.videos, data=data, device=predictor.device)
        self.trusted = self._loader.decoder_trust.decisions
        self.trusted |= trusted or {}
        self.batches_ahead = self._loader.batches_ahead + predictor.in_flight + 2
        """Batches that keep the pipeline full: it may consume this many before it yields the first result."""

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        """Yields a list of (video number, row) for each batch, in order.

        Several batches are in flight at once: being read, decoded, and computed by the engine.
        """
        in_flight: deque[list[Task]] = deque()

        def requests() -> Iterator[list[VideoRequest]]:
            for batch in batches:
                in_flight.append(batch)
                yield [VideoRequest(str(number), video.location, self._clip, video.by_pyav) for number, video in batch]

        computing: deque[tuple[list[Task], ClipBatch, Wait]] = deque()
        for clip_batch in self._loader.batches(requests()):
            computing.append(
                (in_flight.popleft(), clip_batch, self._predictor.start(clip_batch.clips, len(clip_batch.requests)))
            )
            if len(computing) >= self._predictor.in_flight:
                yield self._finish(*computing.popleft())
        while computing:
            yield self._finish(*computing.popleft())

    def _finish(self, tasks: list[Task], clip_batch: ClipBatch, wait: Wait) -> list[tuple[int, Row]]:
        rows: dict[str, Row] = {clip.request.id: {"status": f"error: {clip.reason}"} for clip in clip_batch.bad}
        for request, row in zip(clip_batch.requests, wait(), strict=True):
            rows[request.id] = {"frames": request.video_frames, **row}
        return [(number, named_row(video.name, rows[str(number)])) for number, video in tasks]
