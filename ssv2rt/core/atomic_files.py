"""Atomic writes: files and folders that readers see complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder. It is renamed to `path` if the block succeeds, and removed if it fails.

    Readers of `path` see either the complete old file or the complete new one, which has been flushed to disk.

    Raises:
        OSError: it cannot be written; also for devices such as /dev/stdout and pipes, which a file would take the place of.
    """
    if path.parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir()):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o666 & ~_umask())
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(path: Path, older_than: float = 3600) -> None:
    """Removes what killed processes left of writing `path`: temporary files and folders of this module.

    Args:
        path: file or folder that was to be written.
        older_than: leaves what has changed in the last so many seconds, since it may belong to a live process. Negative to
            remove all, for callers that hold a lock.
    """
    _remove_partial(path.parent, f".{glob.escape(path.name[:100])}.????????.partial", older_than)


def remove_all_partial_files(*folders: Path, older_than: float = -1) -> None:
    """Removes what killed processes left of writing anything in these folders.

    Args:
        folders: the folders.
        older_than: as for `remove_partial_files`; the default is for callers that hold a lock.
    """
    for folder in folders:
        _remove_partial(folder, ".*.????????.partial", older_than)


def _remove_partial(folder: Path, pattern: str, older_than: float) -> None:
    for partial in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - partial.lstat().st_mtime <= older_than:
                continue
            if partial.is_dir() and not partial.is_symlink():
                remove_tree(partial)
            else:
                partial.unlink()


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, to prepare what is to be written there.

    It is removed at the end of the block, unless `replace_folder` has moved it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".partial", dir=path.parent))
    folder.chmod(0o777 & ~_umask())
    try:
        yield folder
    finally:
        remove_tree(folder)


def replace_folder(folder: Path, path: Path) -> None:
    """Renames a complete folder to `path` on the same file system, and removes the folder that was there.

    If that fails, the folder that was there stays.
    """
    for file in folder.rglob("*"):
        flush_to_disk(file)
    with scratch_folder(path) as old:
        there = path.is_dir()
        if there:
            os.replace(path, old / path.name)
        try:
            os.replace(folder, path)
        except BaseException:
            if there:
                os.replace(old / path.name, path)
            raise
    flush_to_disk(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file`, for a folder. An existing folder at `path` is replaced."""
    with scratch_folder(path) as temporary:
        yield temporary
        replace_folder(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_link(link: Path, target: str) -> None:
    """Makes `link` a symbolic link to `target`, relative to the folder of `link`. An existing link is replaced atomically."""
    temporary = link.with_name(f".{link.name[:100]}.{secrets.token_hex(4)}.partial")
    temporary.symlink_to(target)
    try:
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Calls fsync on a file or folder. File systems without fsync are ignored."""
    flags = os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else 0)
    descriptor = os.open(path, flags)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Removes a folder and ignores errors."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
