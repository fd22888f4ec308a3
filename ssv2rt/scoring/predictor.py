"""Runs clips through an engine in full batches, and turns its outputs into the label columns of rows."""

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
"""Waits for the engine, and returns a partial row for each video: its status, labels and probabilities."""


class Predictor:
    """Runs an engine, and turns its outputs into rows.

    Args:
        bundle: an opened bundle, whose engine is loaded here. Its clip settings say how views are averaged.
        top_k: how many labels a row has, at most the number of classes.
        extra_columns: vector columns of a row; see `row.VECTORS`.
        device: the GPU to use; ignored for an engine built for a CPU.
        runner: used instead of the bundle's engine.
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
        self._labels, self._top_k, self._extra_columns = info.labels, top_k, extra_columns
        self._average = info.clip.average
        self.runner = runner or load_runner(bundle)
        self.batch = info.batch.best
        """Clips in a batch of the engine."""
        self.in_flight = self.runner.in_flight
        self.device = (device or choose_device()) if info.on_gpu else torch.device("cpu")
        """Device on which it expects its clips."""

    def start(self, clips: torch.Tensor, videos: int) -> Wait:
        """Starts the engine on uint8 clips (videos * views, T, size, size, 3), with the views of each video in a row."""
        if not len(clips):
            return list
        waits = start_in_batches(self.runner, clips, self.batch)
        return lambda: self._rows([wait() for wait in waits], videos)

    def _rows(self, answers: list[Outputs], videos: int) -> list[Row]:
        logits = mean_over_views(torch.cat([outputs.logits for outputs in answers]), videos, self._average)
        found = {LOGITS: logits}
        if EMBEDDING in self._extra_columns:
            parts = [outputs.embedding for outputs in answers if outputs.embedding is not None]
            found[EMBEDDING] = torch.cat(parts).unflatten(0, (videos, -1)).mean(1)
        rows = rows_of_logits(logits, self._labels, self._top_k)
        for number, row in enumerate(rows):
            if row["status"] == OK:
                row |= {name: found[name][number].numpy() for name in self._extra_columns}
        return rows


def start_in_batches(runner: Runner, clips: torch.Tensor, batch: int) -> list[Callable[[], Outputs]]:
    """Starts an engine on clips, in batches of equal size, and returns what waits for each.

    The last batch is padded with black clips: an engine may use other kernels for a smaller batch, and a video's score must
    not depend on which videos are scored with it.

    Args:
        runner: the engine.
        clips: uint8 (N, T, S, S, 3).
        batch: clips in a batch.
    """

    def start(part: torch.Tensor) -> Callable[[], Outputs]:
        count = len(part)
        missing = part.new_zeros(batch - count, *part.shape[1:])
        wait = runner.start(torch.cat([part, missing]) if len(missing) else part)

        def outputs() -> Outputs:
            logits, embedding = wait()
            return Outputs(logits[:count], None if embedding is None else embedding[:count])

        return outputs

    return [start(part) for part in clips.split(batch)]


def rows_of_logits(logits: torch.Tensor, labels: Sequence[str], top_k: int) -> list[Row]:
    """A row with status, labels and probabilities for each of N clips.

    Args:
        logits: float32 (N, K).
        labels: K class names.
        top_k: labels in a row, at most K.
    """
    # On the CPU at once: a GPU would be waited for at each number.
    probabilities, classes = (part.cpu() for part in logits.softmax(1).topk(top_k))
    rows: list[Row] = []
    for number, finite in enumerate(logits.isfinite().all(1).tolist()):
        row: Row = {"status": OK if finite else "error: not finite"}
        for rank in range(top_k if finite else 0):
            end = "" if rank == 0 else f"_{rank + 1}"
            row[f"label{end}"] = labels[int(classes[number, rank])]
            row[f"probability{end}"] = float(probabilities[number, rank])
        rows.append(row)
    return rows
