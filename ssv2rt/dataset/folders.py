"""Reads data sets with a folder for each class, optionally within a folder for each split."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.listing import (
    SPLIT_ALIASES,
    Listing,
    encode_frames,
    escape_non_utf8,
    find_picture,
    hold_out_validation,
    is_folder,
    is_video,
    list_entries,
    number_classes,
    path_to_text,
)

logger = logging.getLogger(__name__)


def read_folders(root: Path) -> Listing | None:
    """The clips of a folder of class folders, or of a folder of unlabeled videos; None if it is neither.

    There are splits if a folder named like the training split contains class folders. Anything beside the split folders is
    then ignored. Class folders may have subfolders. Folders of pictures are left out, with a warning.

    Raises:
        UserError: there are only folders of pictures.
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
                videos, label = search.videos(folder, f"{split.name}/{folder.name}"), _label(folder)
                rows += [(path, SPLIT_ALIASES[split.name.lower()], label) for path in videos]
    else:
        for folder in _folders(root):
            videos, label = search.videos(folder, folder.name), _label(folder)
            rows += [(path, "train", label) for path in videos]
        if rows:
            search.warn_unclassified(root)
    rows = rows or [(entry.name, "test", "") for entry in list_entries(root) if not is_folder(entry)]
    pictures = search.frame_folders or ([picture] if not rows and (picture := find_picture(root)) else [])
    if pictures and not rows:
        raise UserError(f"no videos in '{root}', but pictures such as '{pictures[0]}'; {encode_frames(pictures[0])}")
    if pictures:
        logger.warning(
            f"{len(pictures)} folders in '{root}' hold no videos but pictures, such as '{pictures[0]}', and are left out; "
            f"{encode_frames(pictures[0])}"
        )
    if not rows:
        return None
    labels, clips = number_classes(rows)
    return Listing(labels, root, hold_out_validation(clips), search.sources)


def folder_warnings(root: Path) -> list[str]:
    """Folders of a data set of class folders whose names are probably meant as those of splits, each kind as one line."""
    if not root.is_dir():
        return []
    folders = _folders(root)
    splits = [folder.name for folder in folders if folder.name.lower() in SPLIT_ALIASES]
    names = f"names of splits are {', '.join(SPLIT_ALIASES)}"
    if any(SPLIT_ALIASES[name.lower()] == "train" and _folders(root / name) for name in splits):
        left_out = [folder.name for folder in folders if folder.name not in splits and list_entries(Path(folder.path))]
        named = ", ".join(f"'{name}'" for name in left_out)
        return [f"beside the splits in '{root}', these folders are left out: {named}; {names}"] if left_out else []
    if splits:
        named = ", ".join(f"'{name}'" for name in splits)
        return [
            f"{named} in '{root}' {'is' if len(splits) == 1 else 'are'} taken to be a class, and not a split, as there is no "
            f"folder 'train' with class folders beside it; {names}"
        ]
    if len(folders) == 1 and len(_only_folders(Path(folders[0].path))) > 1:
        name = folders[0].name
        return [
            f"'{name}' in '{root}' is taken to be the only class; if its folders are classes or splits, give '{root / name}'"
        ]
    inner = {folder.name: below for folder in folders if (below := _only_folders(Path(folder.path)))}
    shared = [name for name, below in inner.items() if any(below & inner[other] for other in inner if other != name)]
    if len(shared) < 2:
        return []
    named = ", ".join(f"'{name}'" for name in shared)
    return [f"the folders {named} in '{root}' have folders of the same names, but are taken to be classes; {names}"]


def _only_folders(folder: Path) -> set[str]:
    """Names of the folders in a folder; empty if it holds a video, too."""
    names = set()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_video(entry.name):
                return set()
            if is_folder(entry) and not entry.name.startswith("."):
                names.add(entry.name)
    return names


def _label(folder: os.DirEntry[str]) -> str:
    """The class of a folder: its name, in which bytes that are not UTF-8 are escaped, with a warning."""
    label = path_to_text(folder.name)
    if label != folder.name:
        logger.warning(
            f"the class of '{escape_non_utf8(folder.path)}' is called '{label}': labels are UTF-8, with other bytes escaped"
        )
    return label


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in list_entries(folder) if is_folder(entry)]


class _VideoSearch:
    """Collects the videos of folders, and records the folders in `sources`."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self.frame_folders: list[Path] = []
        """A picture in each folder that has pictures, and neither videos nor subfolders."""
        self._seen: set[str] = set()

    def videos(self, folder: os.DirEntry[str], name: str) -> list[str]:
        """Paths of the videos in and below `folder`, with `name` as prefix. A folder that links lead to again is skipped."""
        real = os.path.realpath(folder.path)
        if real in self._seen:
            return []
        self._seen.add(real)
        self.sources.append(Path(folder.path))
        found: list[str] = []
        entries = list_entries(Path(folder.path))
        if not entries and (picture := find_picture(Path(folder.path))):
            self.frame_folders.append(picture)
        for entry in entries:
            if is_folder(entry):
                found += self.videos(entry, f"{name}/{entry.name}")
            else:
                found.append(f"{name}/{entry.name}")
        return found

    def warn_unclassified(self, folder: Path) -> None:
        """Warns of videos that are directly in `folder`, and so in no class folder."""
        unclassified = [entry.name for entry in list_entries(folder) if not is_folder(entry)]
        if unclassified:
            logger.warning(
                f"{len(unclassified)} videos in '{folder}', such as '{unclassified[0]}', are in no class folder; left out"
            )
