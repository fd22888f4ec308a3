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
    fail_at: int | None = 0
    and_later = False
    error = errno.ENOSPC
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
            later = self.and_later and self.count > (self.fail_at or 0)
            if self.fail_at is None or self.count == self.fail_at or later:
                raise OSError(self.error, os.strerror(self.error), arguments[0])

    @contextmanager
    def at(
        self, number: int | None, *folders: Path, and_later: bool = False, error: int = errno.ENOSPC
    ) -> Iterator[None]:
        """Fails at this change, counted from 1, and perhaps at all later ones; None for every change."""
        self.folders, self.fail_at, self.and_later, self.count = tuple(map(str, folders)), number, and_later, 0
        self.error = error
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
