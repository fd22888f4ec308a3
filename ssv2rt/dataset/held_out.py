"""Another share of validation clips than a manifest was made with, for data sets without a validation split of their own."""

from __future__ import annotations

import logging
from dataclasses import replace

import pyarrow as pa

from ssv2rt.dataset.listing import HELD_OUT_FRACTION, Clip, hold_out_validation, text_to_path
from ssv2rt.dataset.manifest import Manifest

logger = logging.getLogger(__name__)


def with_validation_share(manifest: Manifest, share: float) -> Manifest:
    """A data set of whose classes this share is held out for validation. One with a validation split of its own keeps it.

    Args:
        manifest: as `open_manifest` gives it.
        share: of the clips of each class, between 0 and 1; see `listing.hold_out_validation`.
    """
    if share == HELD_OUT_FRACTION:
        return manifest
    table = manifest.table
    splits = table["split"].to_pylist()
    together = [
        Clip(text_to_path(clip), "", "train" if split == "validation" else split, label)
        for clip, split, label in zip(table["id"].to_pylist(), splits, table["label"].to_pylist(), strict=True)
    ]
    if [clip.split for clip in hold_out_validation(together)] != splits:
        logger.warning(
            f"data.validation_share = {share:g} has no effect: '{manifest.folder}' has a validation split of its own"
        )
        return manifest
    new = pa.array([clip.split for clip in hold_out_validation(together, share)], pa.string())
    at = table.column_names.index("split")
    return replace(manifest, table=table.set_column(at, table.schema.field(at), new))
