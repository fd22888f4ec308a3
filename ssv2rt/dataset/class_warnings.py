"""Warns of classes that are probably not meant as they are: in one split only, or with names that are nearly the same.

`index` and `train` say the same, each time, whether or not the manifest was there already.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from ssv2rt.dataset.folders import folder_warnings
from ssv2rt.dataset.listing import UNLABELED
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)

_MOST_NAMED = 5


def warn_about_classes(manifest: Manifest) -> None:
    """Logs a warning for each thing that `class_warnings` finds."""
    for text in class_warnings(manifest):
        logger.warning(text)


def class_warnings(manifest: Manifest) -> list[str]:
    """What is odd about the classes of a data set, each as one line; empty if nothing is."""
    found = [*_in_one_split(manifest), *_alike(manifest.labels)]
    if "." in manifest.sources:  # class folders
        found += folder_warnings(manifest.folder)
    return found


def _in_one_split(manifest: Manifest) -> Iterator[str]:
    table = manifest.table.filter(pc.equal(manifest.table["status"], OK))
    splits, labels = table["split"].to_numpy(), table["label"].to_numpy()
    train, validation = (
        Counter(labels[(splits == split) & (labels != UNLABELED)].tolist()) for split in ("train", "validation")
    )
    if not train or not validation:
        return
    for here, there, what, then in (
        (validation, train, "validation", "the network cannot learn them"),
        (train, validation, "training", "their accuracy is not measured"),
    ):
        if alone := [manifest.labels[number] for number in sorted(here) if number not in there]:
            yield f"{len(alone)} of {len(manifest.labels)} classes have only {what} clips, so {then}: {_listed(alone)}"


def _alike(names: Sequence[str]) -> Iterator[str]:
    """Names that differ only in case, Unicode form or spaces."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    for group in groups.values():
        if len(group) > 1:
            forms = _listed([name if name.isascii() else ascii(name)[1:-1] for name in group])
            yield (
                f"{len(group)} classes have names that differ only in case, Unicode form or spaces: {forms}; "
                f"if they are meant to be one class, give them one name"
            )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
