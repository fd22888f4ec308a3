"""Temporary folders that do not stay behind: of a process that was killed, the next call removes them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssv2rt.core.atomic_files import remove_tree

_held: dict[str, int] = {}
"""By path of a folder that this process has made: the descriptor that locks it."""
_outer: list[str] = []
"""The temporary folders in whose place others are used now."""


def make_temporary_folder(prefix: str, parent: str) -> str:
    """Makes a folder in `parent`, and removes those with this prefix whose processes are gone. See `remove_temporary_folder`.

    A lock tells whether its process still runs. The kernel gives it up, however the process ends.
    """
    for left in glob.glob(os.path.join(glob.escape(parent), f"{prefix}*")):
        with contextlib.suppress(OSError):  # it is another user's, or in use
            descriptor = _locked(left)
            remove_tree(Path(left))
            os.close(descriptor)
    new = tempfile.mkdtemp(prefix=f".{prefix}", dir=parent)
    descriptor = _locked(new)
    folder = os.path.join(parent, os.path.basename(new).removeprefix("."))
    os.rename(new, folder)  # only now another process may look whether it is in use
    _held[folder] = descriptor
    return folder


def remove_temporary_folder(folder: str) -> None:
    """Removes a folder that `make_temporary_folder` has made."""
    remove_tree(Path(folder))
    os.close(_held.pop(folder))


@contextlib.contextmanager
def own_temporary_files() -> Iterator[None]:
    """In this block, libraries put temporary files into a folder that is removed at its end; so do processes it starts."""
    before, parent = os.environ.get("TMPDIR"), tempfile.gettempdir()
    folder = make_temporary_folder("ssv2rt-score-", parent)
    _outer.append(parent)
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
    finally:
        tempfile.tempdir = _outer.pop()
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        remove_temporary_folder(folder)


def outer_temporary_folder() -> str:
    """The folder for temporary files outside of `own_temporary_files`."""
    return _outer[-1] if _outer else tempfile.gettempdir()


def _locked(folder: str) -> int:
    """A descriptor of the folder that locks it. Raises OSError if another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
