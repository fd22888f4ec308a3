"""Reads data sets with a folder for each class, optionally within a folder for each split."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ssv2rt.dataset.listing import SPLIT_ALIASES, Listing, hold_out_validation, list_entries, number_classes

logger = logging.getLogger(__name__)


def read_folders(root: Path) -> Listing | None:
    """The clips of a folder of class folders, or of a folder of unlabeled videos; None if it is neither.

    There are splits if a folder named like the training split contains class folders. Anything beside the split folders is
    then ignored. Class folders may have subfolders.
    """
    search = _VideoSearch()
    splits = [entry for entry in _folders(root) if entry.name.lower() in SPLIT_ALIASES]
    rows: list[tuple[str, str, str]] = []
    search.sources.append(root)
    if any(SPLIT_ALIASES[entry.name.lower()] == "train" and _folders(Path(entry.path)) for entry in splits):
        for split in splits:
            search.sources.append(Path(split.path))
            search.warn_unclassified(Path(split.path))
            for folder in _folders(Path(split.path)):
                videos = search.videos(folder, f"{split.name}/{folder.name}")
                rows += [(path, SPLIT_ALIASES[split.name.lower()], folder.name) for path in videos]
    else:
        for folder in _folders(root):
            rows += [(path, "train", folder.name) for path in search.videos(folder, folder.name)]
        if rows:
            search.warn_unclassified(root)
    rows = rows or [(entry.name, "test", "") for entry in list_entries(root) if not entry.is_dir()]
    if not rows:
        return None
    labels, clips = number_classes(rows)
    return Listing(labels, root, hold_out_validation(clips), search.sources)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in list_entries(folder) if entry.is_dir()]


class _VideoSearch:
    """Collects the videos of folders, and records the folders in `sources`."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self._seen: set[str] = set()

    def videos(self, folder: os.DirEntry[str], name: str) -> list[str]:
        """Paths of the videos in and below `folder`, with `name` as prefix. A folder that links lead to again is skipped."""
        real = os.path.realpath(folder.path)
        if real in self._seen:
            return []
        self._seen.add(real)
        self.sources.append(Path(folder.path))
        found = []
        for entry in list_entries(Path(folder.path)):
            if entry.is_dir():
                found += self.videos(entry, f"{name}/{entry.name}")
            else:
                found.append(f"{name}/{entry.name}")
        return found

    def warn_unclassified(self, folder: Path) -> None:
        """Warns of videos that are directly in `folder`, and so in no class folder."""
        unclassified = [entry.name for entry in list_entries(folder) if not entry.is_dir()]
        if unclassified:
            logger.warning(
                f"{len(unclassified)} videos in '{folder}', such as '{unclassified[0]}', are in no class folder; left out"
            )
