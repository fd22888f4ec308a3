"""Tells storage that has gone away from single videos that are missing."""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.row import PATH, Row
from ssv2rt.scoring.video_sources import FILE_SCHEME, Video
from ssv2rt.video.storage import ByteRange, is_address, is_there

_LOSS_STATUSES = frozenset({"error: missing", "error: unreadable"})
"""Statuses that many videos get when their storage goes offline."""
_MOST_FOLDERS = 100_000
"""Folders that are remembered; the earliest ones are forgotten."""


class StorageWatch:
    """Remembers which folders had something in them when their videos were found, and looks at them when one is missing.

    Args:
        inputs: see `discover`.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self._folders = [path for name in inputs if os.path.isdir(path := name.removeprefix(FILE_SCHEME))]
        self._addresses = [name for name in inputs if is_address(name) and not name.startswith(FILE_SCHEME)]
        self._devices: OrderedDict[str, int] = OrderedDict()
        """By folder: the device that it was on."""

    def noting(self, videos: Iterable[Video]) -> Iterator[Video]:
        """The same videos; notes their folders."""
        for video in videos:
            if isinstance(video.location, Path):
                self._note(os.path.dirname(_path_of(video.name)))
            elif isinstance(video.location, ByteRange) and not is_address(video.location.file):
                self._note(_path_of(video.location.file))  # a tar file
            yield video

    def _note(self, folder: str) -> None:
        if folder in self._devices:
            return
        there, device, empty = _nearest_folder(folder)
        if there == folder and not empty:
            self._devices[folder] = device
            if len(self._devices) > _MOST_FOLDERS:
                self._devices.popitem(last=False)

    def check(self, rows: Iterable[Row]) -> None:
        """Checks the inputs, and the folders of videos that are missing or unreadable.

        Raises:
            UserError: a folder that had videos is gone or empty, or has another file system mounted: its storage is offline.
        """
        lost = [row for row in rows if row["status"] in _LOSS_STATUSES]
        if lost:
            self.check_inputs()
        for folder in {os.path.dirname(_path_of(row[PATH])) for row in lost}:
            known = folder
            while known and known not in self._devices and known != os.path.dirname(known):
                known = os.path.dirname(known)  # the folders of a tar file's members are none of their own
            if known not in self._devices:
                continue
            there, device, empty = _nearest_folder(known)
            if empty or device != self._devices[known]:
                how = "is empty now" if empty and there == known else "is gone"
                raise UserError(
                    f"'{escape_non_utf8(known)}' {how}, and had videos before; bring it back, and go on with --resume"
                )

    def check_inputs(self) -> None:
        """Checks that the input folders and URLs can still be read.

        Raises:
            UserError: one cannot, so its storage is offline.
        """
        for name in self._folders:
            try:
                with os.scandir(name) as entries:
                    next(entries, None)
            except OSError as error:
                raise UserError(
                    f"'{name}' is gone ({error.strerror}); bring it back, and go on with --resume"
                ) from None
        for address in self._addresses:
            if not glob.has_magic(address) and not is_there(address):
                raise UserError(f"'{address}' cannot be reached any more; restore access, and go on with --resume")


def _path_of(name: str) -> str:
    return os.path.join(".", name.removeprefix(FILE_SCHEME))


def _nearest_folder(folder: str) -> tuple[str, int, bool]:
    """The innermost folder that exists, of a folder and those around it; its device, and whether it is empty."""
    while True:
        try:
            with os.scandir(folder) as entries:
                return folder, os.stat(folder).st_dev, next(entries, None) is None
        except OSError:
            if os.path.isfile(folder):  # a tar file
                return folder, os.stat(folder).st_dev, False
            if folder == os.path.dirname(folder):
                return folder, -1, True
            folder = os.path.dirname(folder) or "."
