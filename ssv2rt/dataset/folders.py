"""Data sets of folders: one for each class, perhaps within one for each split."""

from __future__ import annotations

import os
from pathlib import Path

from ssv2rt.dataset.listing import SPLIT_NAMES, Listing, entries_of, hold_out, is_video, named_classes


def read_folders(root: Path) -> Listing | None:
    """The clips of a folder of class folders; of a folder of videos, which have no labels; or None if it is neither.

    A class folder's clips may lie in folders of their own below it.
    """
    folders = [entry for entry in entries_of(root) if entry.is_dir()]
    splits = [entry for entry in folders if entry.name.lower() in SPLIT_NAMES]
    sources = [root]
    rows: list[tuple[str, str, str]] = []
    if splits and len(splits) == len(folders):
        for split in splits:
            sources.append(Path(split.path))
            for folder in entries_of(Path(split.path)):
                if folder.is_dir():
                    videos = _videos(folder, f"{split.name}/{folder.name}", sources)
                    rows += [(path, SPLIT_NAMES[split.name.lower()], folder.name) for path in videos]
    else:
        for folder in folders:
            rows += [(path, "train", folder.name) for path in _videos(folder, folder.name, sources)]
    rows = rows or [(entry.name, "test", "") for entry in entries_of(root) if not entry.is_dir()]
    if not rows:
        return None
    labels, clips = named_classes(rows)
    return Listing(labels, root, hold_out(clips), sources)


def _videos(folder: os.DirEntry[str], name: str, sources: list[Path]) -> list[str]:
    """Paths of the videos in and below a folder called `name`; the folders looked into are added to `sources`."""
    sources.append(Path(folder.path))
    found = []
    for entry in entries_of(Path(folder.path)):
        if entry.is_dir(follow_symlinks=False):
            found += _videos(entry, f"{name}/{entry.name}", sources)
        elif is_video(entry.name):
            found.append(f"{name}/{entry.name}")
    return found
