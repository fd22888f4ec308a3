"""Which videos the user means: files as they are named, and the videos in folders and below."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssv2rt.dataset.listing import as_text, is_video
from ssv2rt.errors import UsageError, UserError


def discover(inputs: Iterable[str]) -> Iterator[Path]:
    """Every video, once: a file whatever it is called, a folder's videos by extension, sorted, without hidden ones.

    Raises:
        UsageError: an input does not exist.
        UserError: the inputs hold no video.
    """
    seen: set[str] = set()
    found = False
    for name in inputs:
        path = Path(name)
        try:
            if path.is_dir() and name:
                files: Iterable[Path] = _below(path)
            elif os.path.lexists(path) and name:
                files = [path]
            else:
                raise UsageError(f"no file or folder '{name}'; check the path")
        except OSError as error:
            raise UsageError(f"no file or folder '{name}': {error.strerror}; check the path") from None
        for file in files:
            where = os.path.realpath(file)
            if where not in seen:
                seen.add(where)
                found = True
                yield file
    if not found:
        names = ", ".join(f"'{name}'" for name in inputs)
        raise UserError(f"no videos in {names}; looked for .webm, .mp4, .avi, .mkv, .mov and other video extensions")


def shown(path: Path) -> str:
    """A path as text that every format can hold: bytes that are no UTF-8 are written \\xff."""
    return as_text(str(path))


def _below(root: Path) -> Iterator[Path]:
    """Videos below a folder, each folder's own first. Links are followed; a loop of links ends."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and is_video(name):
                yield Path(folder) / name
