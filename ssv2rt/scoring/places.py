"""Where an input's videos are: below folders, in tar files, and at addresses such as s3://bucket/clips."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ssv2rt.console import say
from ssv2rt.dataset.listing import as_text, is_video
from ssv2rt.dataset.storage import Stored, file_system, is_address
from ssv2rt.dataset.video import Place
from ssv2rt.errors import UsageError

_SORTED = 10_000
"""Names of a folder that are put in order at once; more come in parts, since all of them may not fit into memory."""
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be scored."""

    name: str
    """What its row is called, exactly: a path, an address, or that of a tar file with the member's name behind it."""
    place: Place

    @classmethod
    def at(cls, name: str) -> Video:
        """By a path or an address."""
        return cls(name, Stored(name) if is_address(name) else Path(name))


Found = tuple[Video, str]
"""A video, and where it really is: two names of one file have the same."""


def is_tar(name: str) -> bool:
    """Whether a name is that of a tar file, by its extension."""
    return name.lower().endswith(".tar")


def file_at(name: str) -> Iterator[Found]:
    """A file by its path or address: itself, whatever it is called, or what is in it if it is a tar file."""
    if is_tar(name) and (is_address(name) or os.path.isfile(name)):
        yield from _members(name, name if is_address(name) else os.path.realpath(name))
    else:
        yield Video.at(name), name if is_address(name) else os.path.realpath(name)


def below(root: Path) -> Iterator[Found]:
    """Videos below a folder, each folder's own first. Links are followed; a loop of them ends."""
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        folders: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                while part := sorted(islice(entries, _SORTED), key=lambda entry: entry.name):
                    for entry in part:
                        if entry.name.startswith("."):
                            continue
                        if _is_folder(entry):
                            folders.append(Path(entry.path))
                        elif is_video(entry.name) or is_tar(entry.name):
                            # Following every path from the root would be most of the work.
                            where = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
                            path = Path(entry.path)
                            yield from (
                                _members(str(path), where) if is_tar(entry.name) else [(Video(str(path), path), where)]
                            )
        except OSError as error:
            say(f"cannot look into '{as_text(str(folder))}': {error.strerror}; it has a row in place of what is in it")
            yield Video(str(folder), folder), real
        waiting += reversed(folders)


def at_address(address: str) -> Iterator[Found]:
    """The videos at an address: of a file, of all below a folder, or of a pattern.

    Raises:
        UsageError: there is nothing.
        UserError: there is no file system for it, or its package is not installed.
    """
    import glob

    system, path = file_system(address)
    found = False
    if glob.has_magic(path):
        for name in system.glob(path):
            found = True
            base = os.path.basename(name)
            if not base.startswith(".") and (is_video(base) or is_tar(base)):
                yield from file_at(_address(system, name, address))
    elif system.isfile(path):
        found = True
        yield from file_at(address)
    else:
        for _, _, files in system.walk(path, detail=True):
            for base, facts in sorted(files.items()):
                found = True
                if not base.startswith(".") and (is_video(base) or is_tar(base)):
                    yield from file_at(_address(system, facts["name"], address))
    if not found:
        raise UsageError(f"nothing at '{address}'; check the address")


def _address(system: Any, name: str, like: str) -> str:
    """The address of what a file system calls `name`, written like another one."""
    kind = like.partition("://")[0]
    return f"{kind}://{name}" if not is_address(name) else name


def _members(tar: str, where: str) -> Iterator[Found]:
    """The videos in a tar file, to be read where they are. A damaged one has a row of its own after its whole members."""
    try:
        with Stored(tar).open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the list of them might not fit into memory
                base = os.path.basename(member.name)
                if member.isfile() and is_video(base) and not base.startswith("."):
                    size = 0 if member.issparse() else member.size
                    place = Stored(tar, member.offset_data, size)
                    yield Video(f"{tar}/{member.name}", place), f"{where}/{member.name}"
    except (tarfile.TarError, OSError) as error:
        say(f"cannot read '{as_text(tar)}' to its end: {error}; it has a row in place of what follows")
        yield Video(tar, Path(tar) if not is_address(tar) else Stored(tar)), where


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say: a file that cannot be read
