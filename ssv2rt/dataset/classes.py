"""Data sets under the class numbers of a network that knows other classes, or the same in another order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ssv2rt.core.class_names import match_classes
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.listing import UNLABELED
from ssv2rt.dataset.manifest import Manifest, Split

logger = logging.getLogger(__name__)


def for_classes(manifest: Manifest, classes: Sequence[str], network: str) -> Manifest:
    """A data set under the class numbers of a network. Clips of classes that the network does not know are left out.

    Args:
        manifest: the data set.
        classes: class names of the network, in order.
        network: what to call it in messages.

    Raises:
        UserError: the data has classes, and the network knows none of them; or a name fits several classes.
    """
    if manifest.labels == tuple(classes):
        return manifest
    match, data = match_classes(manifest.labels, classes), f"'{manifest.folder}'"
    if match.names and len(match.unknown) == len(match.names):
        raise match.none_known(data, network)
    if text := match.spelling_text(data, network):
        logger.warning(text)
    label = manifest.table["label"].to_numpy()
    # Index -1, of clips without a label, is the last entry.
    numbers = np.append(match.numbers, np.int32(UNLABELED))[label]
    left_out = (label != UNLABELED) & (numbers == UNLABELED)
    at = manifest.table.column_names.index("label")
    table = manifest.table.set_column(at, manifest.table.schema.field(at), pa.array(numbers, pa.int32()))
    if match.unknown:
        logger.warning(
            f"{len(match.unknown)} of the {len(match.names)} classes of {data} are no classes of {network}, so "
            f"{int(left_out.sum())} of its {len(label)} clips are left out: {match.unknown_text()}"
        )
    return replace(manifest, labels=tuple(classes), table=table.filter(pa.array(~left_out)))


def labeled(split: Split) -> Split:
    """The clips of a split that have a label; logs how many have none.

    Raises:
        UserError: no clip has one.
    """
    known = split.classes != UNLABELED
    if known.all():
        return split
    if not known.any():
        raise UserError(
            f"no clip of this split of '{split.folder}' has a label; evaluate one that has, such as validation"
        )
    logger.warning(f"{int((~known).sum())} of {len(known)} clips have no label and are left out of accuracy")
    mask = pa.array(known)
    return replace(
        split,
        ids=split.ids.filter(mask),
        paths=split.paths.filter(mask),
        classes=split.classes[known],
        frames=split.frames[known],
        widths=split.widths[known],
        heights=split.heights[known],
        durations=split.durations[known],
        times=split.times.filter(mask),
    )
