"""Videos through an engine: one row each, whatever happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from ssv2rt.dataset.video import OK
from ssv2rt.engines.backends import Runner, load_runner
from ssv2rt.engines.bundle import Bundle
from ssv2rt.hardware import choose_device
from ssv2rt.models.clipmodel import mean_over_views
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.source import VideoRequest
from ssv2rt.recipes import Clip, Data
from ssv2rt.scoring.journal import Row, named

Task = tuple[int, str]
"""A video by number, since two names may look the same when they are shown; and its path."""


class Scorer:
    """Scores videos with an engine.

    Args:
        bundle: checked; its engine is loaded.
        top_k: how many labels a row names, at most the number of classes.
        data: decoder, threads and read-ahead.
        clip: what is looked at, if it is other views than those of the bundle.
        logits: whether rows have the scores of all classes, too.
        device: which GPU, for engines of GPUs.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        top_k: int,
        data: Data,
        clip: Clip | None = None,
        logits: bool = False,
        device: torch.device | None = None,
    ) -> None:
        info = bundle.info
        self._labels, self._top_k, self._all = info.labels, top_k, logits
        self._clip = clip or info.clip
        self._batch = info.batch.best
        self.videos = max(1, self._batch // (self._clip.views[0] * self._clip.views[1]))
        """In a batch."""
        on_gpu = info.target.startswith("sm")
        self._runner: Runner = load_runner(bundle)
        where = (device or choose_device()) if on_gpu else torch.device("cpu")
        self._loader = ClipLoader(clip=self._clip, batch=self.videos, data=data, device=where)
        self.ahead = self._loader.ahead + self._runner.in_flight + 2
        """Batches that keep it busy: it may take so many before it gives the first."""

    def score(self, batches: Iterable[list[Task]]) -> Iterator[list[tuple[int, Row]]]:
        """The rows of each batch, in order: those of its videos in their order, with their numbers.

        Several batches are under way at once: read, decoded, in the engine.
        """
        asked: deque[list[Task]] = deque()

        def requests() -> Iterator[list[VideoRequest]]:
            for batch in batches:
                asked.append(batch)
                yield [VideoRequest(str(number), Path(path), self._clip) for number, path in batch]

        computing: deque[tuple[list[Task], ClipBatch, Callable[[], torch.Tensor]]] = deque()
        for made in self._loader.batches(requests()):
            computing.append((asked.popleft(), made, self._start(made.clips)))
            if len(computing) >= self._runner.in_flight:
                yield self._finish(*computing.popleft())
        while computing:
            yield self._finish(*computing.popleft())

    def _start(self, clips: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Gives clips to the engine, and returns what waits for the logits.

        The engine's batch is always full, with black clips if need be: an engine may compute a smaller one by other kernels,
        and a video's score must not depend on its neighbours.
        """
        waits = []
        for part in clips.split(self._batch) if len(clips) else ():
            missing = part.new_zeros(self._batch - len(part), *part.shape[1:])
            waits.append((len(part), self._runner.start(torch.cat([part, missing]) if len(missing) else part)))
        return lambda: torch.cat([wait().logits[:count] for count, wait in waits])

    def _finish(self, tasks: list[Task], made: ClipBatch, wait: Callable[[], torch.Tensor]) -> list[tuple[int, Row]]:
        rows: dict[str, Row] = {clip.request.id: {"status": f"error: {clip.reason}"} for clip in made.bad}
        if made.requests:
            logits = mean_over_views(wait(), len(made.requests))
            probabilities, classes = logits.softmax(1).topk(self._top_k)
            finite = logits.isfinite().all(1)
            for number, request in enumerate(made.requests):
                row: Row = {"status": OK, "frames": request.video_frames}
                if not finite[number]:
                    row["status"] = "error: not finite"
                else:
                    for rank in range(self._top_k):
                        end = "" if rank == 0 else f"_{rank + 1}"
                        row[f"label{end}"] = self._labels[int(classes[number, rank])]
                        row[f"probability{end}"] = float(probabilities[number, rank])
                    if self._all:
                        row["logits"] = logits[number].tolist()
                rows[request.id] = row
        return [(number, named(path, rows[str(number)])) for number, path in tasks]
