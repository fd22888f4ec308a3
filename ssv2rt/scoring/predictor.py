"""From clips to the labels of a row: an engine's batches, always full, and what is made of its answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from ssv2rt.core.hardware import choose_device
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import Bundle
from ssv2rt.models.clip_model import mean_over_views
from ssv2rt.scoring.row import EMBEDDING, LOGITS, Row
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)


Wait = Callable[[], list[Row]]
"""Waits for the engine, and gives what rows say of labels: one for each video."""


class Predictor:
    """An engine, and which of its answers go into rows.

    Args:
        bundle: checked; its engine is loaded.
        top_k: how many labels a row names, at most the number of classes.
        extra_columns: columns of `sinks.MANY`.
        device: which GPU, for engines of GPUs.
        runner: what runs in place of the bundle's engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        top_k: int,
        extra_columns: Sequence[str] = (),
        device: torch.device | None = None,
        runner: Runner | None = None,
    ) -> None:
        info = bundle.info
        self._labels, self._top_k, self._more = info.labels, top_k, extra_columns
        self._runner = runner or load_runner(bundle)
        self.batch = info.batch.best
        """Clips that it computes at once."""
        self.in_flight = self._runner.in_flight
        on_gpu = info.target.startswith("sm")
        self.device = (device or choose_device()) if on_gpu else torch.device("cpu")
        """Where it wants its clips."""

    def start(self, clips: torch.Tensor, videos: int) -> Wait:
        """Gives the engine uint8 clips (videos * views, T, size, size, 3): the views of each video, in order.

        The engine's batch is always full, with black clips if need be: an engine may compute a smaller one by other kernels,
        and a video's score must not depend on its neighbours.
        """
        waits = []
        for part in clips.split(self.batch) if len(clips) else ():
            missing = part.new_zeros(self.batch - len(part), *part.shape[1:])
            waits.append((len(part), self._runner.start(torch.cat([part, missing]) if len(missing) else part)))
        if not waits:
            return list
        return lambda: self._rows([(count, wait()) for count, wait in waits], videos)

    def _rows(self, answers: list[tuple[int, Outputs]], videos: int) -> list[Row]:
        logits = mean_over_views(torch.cat([outputs.logits[:count] for count, outputs in answers]), videos)
        found = {LOGITS: logits}
        if EMBEDDING in self._more:
            parts = [outputs.embedding[:count] for count, outputs in answers if outputs.embedding is not None]
            found[EMBEDDING] = torch.cat(parts).unflatten(0, (videos, -1)).mean(1)
        probabilities, classes = logits.softmax(1).topk(self._top_k)
        finite = logits.isfinite().all(1)
        rows: list[Row] = []
        for number in range(videos):
            if not finite[number]:
                rows.append({"status": "error: not finite"})
                continue
            row: Row = {"status": OK}
            for rank in range(self._top_k):
                end = "" if rank == 0 else f"_{rank + 1}"
                row[f"label{end}"] = self._labels[int(classes[number, rank])]
                row[f"probability{end}"] = float(probabilities[number, rank])
            row |= {name: found[name][number].numpy() for name in self._more}
            rows.append(row)
        return rows
