"""Data sets of folders: one for each class, perhaps within one for each split."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ssv2rt.dataset.listing import SPLIT_NAMES, Listing, entries_of, hold_out, named_classes

logger = logging.getLogger(__name__)


def read_folders(root: Path) -> Listing | None:
    """The clips of a folder of class folders; of a folder of videos, which have no labels; or None if it is neither.

    There are splits where a folder called like the training split holds class folders; what lies beside the splits is
    none of the data set then. A class folder's clips may lie in folders of their own below it.
    """
    search = _Search()
    splits = [entry for entry in _folders(root) if entry.name.lower() in SPLIT_NAMES]
    rows: list[tuple[str, str, str]] = []
    search.sources.append(root)
    if any(SPLIT_NAMES[entry.name.lower()] == "train" and _folders(Path(entry.path)) for entry in splits):
        for split in splits:
            search.sources.append(Path(split.path))
            search.leave_out(Path(split.path))
            for folder in _folders(Path(split.path)):
                videos = search.videos(folder, f"{split.name}/{folder.name}")
                rows += [(path, SPLIT_NAMES[split.name.lower()], folder.name) for path in videos]
    else:
        for folder in _folders(root):
            rows += [(path, "train", folder.name) for path in search.videos(folder, folder.name)]
        if rows:
            search.leave_out(root)
    rows = rows or [(entry.name, "test", "") for entry in entries_of(root) if not entry.is_dir()]
    if not rows:
        return None
    labels, clips = named_classes(rows)
    return Listing(labels, root, hold_out(clips), search.sources)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in entries_of(folder) if entry.is_dir()]


class _Search:
    """Looks for videos, and remembers where it has looked."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self._seen: set[str] = set()

    def videos(self, folder: os.DirEntry[str], name: str) -> list[str]:
        """Paths of the videos in and below a folder called `name`; a folder that is met twice is looked into once."""
        real = os.path.realpath(folder.path)
        if real in self._seen:
            return []
        self._seen.add(real)
        self.sources.append(Path(folder.path))
        found = []
        for entry in entries_of(Path(folder.path)):
            if entry.is_dir():
                found += self.videos(entry, f"{name}/{entry.name}")
            else:
                found.append(f"{name}/{entry.name}")
        return found

    def leave_out(self, folder: Path) -> None:
        """Says which videos lie where no class is."""
        loose = [entry.name for entry in entries_of(folder) if not entry.is_dir()]
        if loose:
            logger.warning(
                f"{len(loose)} videos in '{folder}', such as '{loose[0]}', lie in no class folder and are left out"
            )
