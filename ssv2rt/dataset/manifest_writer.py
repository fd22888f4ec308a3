"""Writes the manifest of a data set and its quarantine table: under a lock, atomically, beside the data or in the cache."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.csv

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files
from ssv2rt.core.errors import UserError
from ssv2rt.core.locks import LockedError, exclusive
from ssv2rt.dataset.manifest import Manifest, is_manifest, is_parquet, manifest_paths, write_manifest
from ssv2rt.dataset.quarantine import COLUMNS, quarantine, quarantine_file

logger = logging.getLogger(__name__)


class ManifestWriter:
    """Writes the manifest of a data set and its quarantine table, while no other process does.

    Args:
        root: the data set, for messages.
        paths: where the manifest may be, in the order of preference.
        must_write: raise an error where nothing can be written, rather than warn once.
    """

    def __init__(self, root: Path, paths: list[Path], *, must_write: bool) -> None:
        self.paths = paths
        self._root, self._must_write = root, must_write
        self._reasons: dict[Path, str] = {}
        """Paths that cannot be written, and why."""
        self._told = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path, out: Path | None, *, must_write: bool = True) -> Iterator[ManifestWriter]:
        """Takes the lock of the first path that can be written: `out` if it is given, or see `manifest_paths`."""
        writer = cls(root, [out] if out else manifest_paths(root), must_write=must_write)
        with contextlib.ExitStack() as stack:
            for path in writer.paths:
                _check_replaceable(path)
                _check_replaceable(quarantine_file(path))
                try:
                    if out and not out.parent.is_dir():
                        raise UserError(f"cannot write '{out}': there is no folder '{out.parent}'")
                    stack.enter_context(exclusive(path, "indexing"))
                except LockedError:
                    raise
                except UserError as error:
                    writer._reasons[path] = str(error).partition(";")[0]
                    continue
                for file in (path, quarantine_file(path)):
                    remove_partial_files(file, older_than=-1)  # no live process is writing them
                break
            writer._next_path()
            yield writer

    def write(self, manifest: Manifest, *, with_quarantine: bool = True) -> Path:
        """Writes both files, and returns the path of the manifest.

        Raises:
            UserError: they can be written nowhere.
        """
        while path := self._next_path():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_manifest(path, manifest)
                if with_quarantine:
                    with atomic_file(quarantine_file(path)) as temporary, temporary.open("wb") as file:
                        pyarrow.csv.write_csv(quarantine(manifest), file)
                return path
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                self._reasons[path] = f"cannot write '{path}': {reason}"
        return self.paths[-1]

    def _next_path(self) -> Path | None:
        """The first path that is not known to be unwritable; None if there is none. Says so once if it is not the first."""
        path = next((path for path in self.paths if path not in self._reasons), None)
        if path is None and not self._must_write:
            if not self._told:
                logger.warning(f"{', and '.join(self._reasons.values())}; so the videos are probed again each time")
            self._told = True
            return None
        if path is None:
            remedy = "set SSV2RT_CACHE to a folder that you can write to, or choose one with `ssv2rt index --out`"
            raise UserError(
                f"{', and '.join(self._reasons.values())}; {remedy if len(self.paths) > 1 else 'choose another --out'}"
            )
        if path != self.paths[0] and not self._told:
            logger.info(
                f"{self._reasons[self.paths[0]]}; the manifest of '{self._root}' is kept in the cache: '{path}'"
            )
            self._told = True
        return path


def _check_replaceable(path: Path) -> None:
    """Raises UserError if `path` exists and was not written by `ssv2rt index`."""
    if not path.exists():
        return
    with contextlib.suppress(OSError):
        head = path.open("rb").readline() if path.is_file() else b"-"
        if (
            head == b""
            or is_manifest(path)
            or head.decode(errors="replace").strip().replace('"', "") == ",".join(COLUMNS)
        ):
            return
    if f".{path.name}".endswith(".manifest.parquet") and path.is_file() and not is_parquet(path):
        return  # a damaged manifest
    raise UserError(f"'{path}' exists, and `ssv2rt index` has not written it; move it, or choose another --out")
