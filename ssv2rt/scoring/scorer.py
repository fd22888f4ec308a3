"""Videos through an engine: one row each, whatever happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ssv2rt.console import Progress
from ssv2rt.dataset.video import OK
from ssv2rt.engines.backends import Runner, load_runner
from ssv2rt.engines.bundle import Bundle
from ssv2rt.hardware import choose_device
from ssv2rt.models.clipmodel import mean_over_views
from ssv2rt.pipelines.epochs import in_batches
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.source import VideoRequest
from ssv2rt.recipes import Clip, Data
from ssv2rt.scoring.discover import shown
from ssv2rt.scoring.sinks import Row, Sink


@dataclass(frozen=True)
class Summary:
    """What scoring did."""

    videos: int
    errors: int


class Scorer:
    """Scores videos with an engine.

    Args:
        bundle: checked; its engine is loaded.
        top_k: how many labels a row names, at most the number of classes.
        data: decoder, threads and read-ahead.
        clip: what is looked at, if it is other views than those of the bundle.
    """

    def __init__(self, bundle: Bundle, *, top_k: int, data: Data, clip: Clip | None = None) -> None:
        info = bundle.info
        self._labels, self._top_k = info.labels, top_k
        self._clip = clip or info.clip
        self._batch = info.batch.best
        self._videos = max(1, self._batch // (self._clip.views[0] * self._clip.views[1]))
        device = choose_device() if info.target.startswith("sm") else torch.device("cpu")
        self._runner: Runner = load_runner(bundle)
        self._loader = ClipLoader(clip=self._clip, batch=self._videos, data=data, device=device)

    def score(self, videos: Iterable[Path], sink: Sink, total: int | None = None) -> Summary:
        """Writes one row for every video, in order."""
        done = errors = 0
        with Progress("scoring", total, unit="videos") as progress:
            for rows in self._rows(videos):
                sink.write(rows)
                done += len(rows)
                errors += sum(row["status"] != OK for row in rows)
                progress.show(done, errors=str(errors))
        return Summary(done, errors)

    def _rows(self, videos: Iterable[Path]) -> Iterator[list[Row]]:
        # By number, since two names may look the same when they are shown.
        requests = (VideoRequest(str(number), video, self._clip) for number, video in enumerate(videos))
        batches: list[list[str]] = []  # numbers in order, of batches under way

        def remembered() -> Iterator[list[VideoRequest]]:
            for batch in in_batches(requests, self._videos):
                batches.append([request.id for request in batch])
                yield batch

        for batch in self._loader.batches(remembered()):
            rows = dict(self._score_batch(batch))
            yield [rows[name] for name in batches.pop(0)]

    def _score_batch(self, batch: ClipBatch) -> Iterator[tuple[str, Row]]:
        for clip in batch.bad:
            yield clip.request.id, {"video": shown(clip.request.path), "status": f"error: {clip.reason}"}
        if not batch.requests:
            return
        logits = torch.cat([self._logits(clips) for clips in batch.clips.split(self._batch)])
        logits = mean_over_views(logits, len(batch.requests))
        probabilities, classes = logits.softmax(1).topk(self._top_k)
        finite = logits.isfinite().all(1)
        for number, request in enumerate(batch.requests):
            row: Row = {"video": shown(request.path), "status": OK, "frames": request.video_frames}
            if not finite[number]:
                row["status"] = "error: not finite"
            else:
                for rank in range(self._top_k):
                    end = "" if rank == 0 else f"_{rank + 1}"
                    row[f"label{end}"] = self._labels[int(classes[number, rank])]
                    row[f"probability{end}"] = float(probabilities[number, rank])
            yield request.id, row

    def _logits(self, clips: torch.Tensor) -> torch.Tensor:
        """The engine's answer for at most a batch of clips.

        The batch is always full, with black clips if need be: an engine may compute a smaller one by other kernels, and a
        video's score must not depend on its neighbours.
        """
        missing = clips.new_zeros(self._batch - len(clips), *clips.shape[1:])
        return self._runner(torch.cat([clips, missing]) if len(missing) else clips)[: len(clips)]
