"""Videos through an engine: one row each, whatever happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.decoder_trust import Decision
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest
from ssv2rt.scoring.predictor import Predictor, Wait
from ssv2rt.scoring.row import Row, row_of
from ssv2rt.scoring.video_sources import Video

Task = tuple[int, Video]
"""A video, with a number, since two names may look the same when they are shown."""


class Scorer:
    """Scores videos with an engine.

    Args:
        predictor: the engine.
        data: decoder, threads and read-ahead.
        clip: what is looked at.
        trusted: which kinds of videos DALI is trusted with, as an earlier process has found out. See `DecoderTrust.decisions`.
    """

    def __init__(
        self, predictor: Predictor, *, data: Data, clip: Clip, trusted: Mapping[str, Decision] | None = None
    ) -> None:
        self._predictor, self._clip = predictor, clip
        self.videos = max(1, predictor.batch // (clip.views[0] * clip.views[1]))
        """In a batch."""
        self._loader = ClipLoader(clip=clip, batch=self.videos, data=data, device=predictor.device)
        self.trusted = self._loader.decoder_trust.decisions
        self.trusted |= trusted or {}
        self.batches_ahead = self._loader.batches_ahead + predictor.in_flight + 2
        """Batches that keep it busy: it may take so many before it gives the first."""

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        """The rows of each batch, in order: those of its videos in their order, with their numbers.

        Several batches are under way at once: read, decoded, in the engine.
        """
        asked: deque[list[Task]] = deque()

        def requests() -> Iterator[list[VideoRequest]]:
            for batch in batches:
                asked.append(batch)
                yield [VideoRequest(str(number), video.place, self._clip, video.by_pyav) for number, video in batch]

        computing: deque[tuple[list[Task], ClipBatch, Wait]] = deque()
        for made in self._loader.batches(requests()):
            computing.append((asked.popleft(), made, self._predictor.start(made.clips, len(made.requests))))
            if len(computing) >= self._predictor.in_flight:
                yield self._finish(*computing.popleft())
        while computing:
            yield self._finish(*computing.popleft())

    def _finish(self, tasks: list[Task], made: ClipBatch, wait: Wait) -> list[tuple[int, Row]]:
        rows: dict[str, Row] = {clip.request.id: {"status": f"error: {clip.reason}"} for clip in made.bad}
        for request, row in zip(made.requests, wait(), strict=True):
            rows[request.id] = {"frames": request.video_frames, **row}
        return [(number, row_of(video.name, rows[str(number)])) for number, video in tasks]
