"""Faults of the file system, for tests."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Faults:
    """Makes Python's n-th change to some folders fail: opening a file to write, making a folder, renaming.

    Python reports these to audit hooks before it does them. A hook cannot be removed, so there is one for all tests.
    """

    folders: tuple[str, ...] = ()
    fail_at = 0
    and_later = False
    count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folders or event not in ("open", "os.mkdir", "os.rename"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if event == "os.mkdir" and os.path.isdir(arguments[0]):
            return  # it would fail in any case
        if isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(self.folders):
            self.count += 1
            if self.count == self.fail_at or (self.and_later and self.count > self.fail_at):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    @contextmanager
    def at(self, number: int, *folders: Path, and_later: bool = False) -> Iterator[None]:
        """Fails at this change, counted from 1, and perhaps at all later ones."""
        self.folders, self.fail_at, self.and_later, self.count = tuple(map(str, folders)), number, and_later, 0
        try:
            yield
        finally:
            self.folders = ()


FAULTS = Faults()
sys.addaudithook(FAULTS)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, whatever code writes it. Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
