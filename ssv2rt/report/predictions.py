"""Writes the predictions of an evaluation: a row for each clip, as `score` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import torch

from ssv2rt.dataset.listing import UNLABELED, text_to_path
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.engines.bundle import sha256
from ssv2rt.models.weights import TrainedModel
from ssv2rt.pipelines.loader import ClipBatch
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.scoring.metadata import output_metadata
from ssv2rt.scoring.predictor import rows_of_logits
from ssv2rt.scoring.row import EXPECTED, Row, columns, named_row
from ssv2rt.scoring.writers import open_writer
from ssv2rt.training.evaluate import Record
from ssv2rt.training.request import Recorder
from ssv2rt.video.container import OK

TOP_K = 5
"""Labels in a row."""


def prediction_recorder(path: Path) -> Recorder:
    """What writes a row for each clip of an evaluated split to a file. See `evaluate_as_requested`.

    Clips that cannot be used or decoded have a row with `error: reason`.
    """

    @contextmanager
    def recorder(trained: TrainedModel, manifest: Manifest, split: str) -> Iterator[Record]:
        labels, top_k = trained.labels, min(TOP_K, len(trained.labels))
        metadata = output_metadata(
            model=trained.recipe.model.name,
            weights_sha256=sha256(trained.path),
            labels=labels,
            clip=trained.recipe.clip,
            engine={"name": "PyTorch", "backend": "pytorch", "backend_version": torch.__version__},
        )
        with open_writer(path, columns(top_k, expected=True), metadata) as writer:

            def record(batch: ClipBatch, logits: torch.Tensor | None) -> None:
                found = [] if logits is None else rows_of_logits(logits, labels, top_k)
                for request, row in zip(batch.requests, found, strict=True):
                    frames = {"frames": request.video_frames} if row["status"] == OK else {}
                    writer.write([named_row(str(request.path), {**row, **frames, EXPECTED: labels[request.label]})])
                for clip in batch.bad:
                    assert isinstance(clip.request, ClipRequest)
                    facts = {"status": f"error: {clip.reason}", EXPECTED: labels[clip.request.label]}
                    writer.write([named_row(str(clip.request.path), facts)])

            yield record
            writer.write(_unusable(manifest, split))

    return recorder


def _unusable(manifest: Manifest, split: str) -> list[Row]:
    """Rows for the labeled clips of a split that cannot be used."""
    table = manifest.table
    rows = table.filter(pc.and_(pc.not_equal(table["status"], OK), pc.not_equal(table["label"], UNLABELED)))
    return [
        named_row(
            str(manifest.folder / text_to_path(row["path"])),
            {"status": f"error: {row['status']}", EXPECTED: manifest.labels[row["label"]]},
        )
        for row in rows.select(["path", "split", "label", "status"]).to_pylist()
        if split in ("all", row["split"])
    ]
