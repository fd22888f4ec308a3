"""Where an input's videos are: below folders, in tar files, and at addresses such as s3://bucket/clips."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.listing import as_text, is_video
from ssv2rt.video.container import CLIP_ERRORS, VideoLocation
from ssv2rt.video.storage import ByteRange, file_system, is_address, storage_errors

logger = logging.getLogger(__name__)


_SORTED = 10_000
"""Names of a folder that are put in order at once; more come in parts, since all of them may not fit into memory."""
LOCAL = "file://"
"""What the address of a path begins with. It is read as the path is: FFmpeg, links and pipes are the same there."""
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be scored."""

    name: str
    """What its row is called, exactly: a path, an address, or that of a tar file with the member's name behind it."""
    place: VideoLocation
    by_pyav: bool = False
    """Whether PyAV decodes it in any case, since the process that had it in hand with others has died."""

    @classmethod
    def at(cls, name: str) -> Video:
        """By a path or an address."""
        return cls(name, ByteRange(name) if is_address(name) else Path(name))


Found = tuple[Video, str]
"""A video, and where it really is: two names of one file have the same."""


def is_tar(name: str) -> bool:
    """Whether a name is that of a tar file, by its extension."""
    return name.lower().endswith(".tar")


def file_at(name: str) -> Iterator[Found]:
    """A file by its path or address: itself, whatever it is called, or what is in it if it is a tar file.

    Raises:
        UserError: an address is of a kind of storage whose package is not installed.
    """
    if name.startswith(LOCAL):
        yield from as_addresses(file_at(path_of(name)))
        return
    if is_address(name):
        _check_installed(name.partition("://")[0])
    where = name if is_address(name) else os.path.realpath(name)
    if is_tar(name) and (is_address(name) or os.path.isfile(name)):
        yield from _members(name, where)
    else:
        yield Video.at(name), where


def path_of(address: str) -> str:
    """The path of a file:// address."""
    return os.path.abspath(address.removeprefix(LOCAL))


def as_addresses(found: Iterator[Found]) -> Iterator[Found]:
    """What was found by its path, called by its address."""
    return ((replace(video, name=f"{LOCAL}{video.name}"), where) for video, where in found)


@cache
def _check_installed(kind: str) -> None:
    """So that it is said once, and not by a row for each of a million addresses."""
    from fsspec import get_filesystem_class

    for part in kind.split("::"):
        try:
            get_filesystem_class(part)
        except ImportError as error:
            raise UserError(f"'{kind}://': {error}; install that package beside ssv2rt") from None
        except ValueError:
            return  # there is no such kind: rows say so


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
                        elif _is_wanted(entry.name):
                            # Following every path from the root would be most of the work.
                            where = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
                            path = Path(entry.path)
                            yield from (
                                _members(str(path), where) if is_tar(entry.name) else [(Video(str(path), path), where)]
                            )
        except OSError as error:
            _say_once(
                f"cannot look into '{as_text(str(folder))}': {error.strerror}; it has a row in place of what is in it"
            )
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
    with storage_errors():
        if glob.has_magic(path) and not system.exists(path):
            for name in system.glob(path):
                found = True
                if _is_wanted(os.path.basename(name)):
                    yield from file_at(_address(name, address))
        elif system.isfile(path):
            found = True
            yield from file_at(address)
        else:
            for name, error in _below_address(system, path):
                found = True
                here = _address(name, address)
                if error:
                    _say_once(f"cannot look into '{here}': {error}; it has a row in place of what is in it")
                    yield Video.at(here), here
                elif _is_wanted(os.path.basename(name)):
                    yield from file_at(here)
    if not found:
        raise UsageError(f"nothing at '{address}'; check the address")


def _below_address(system: Any, root: str) -> Iterator[tuple[str, OSError | None]]:
    """Files below a folder, each folder's own first, and folders that cannot be looked into, with why.

    fsspec's own `walk` leaves those out without a word. Raises OSError if it is the first one.
    """
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with storage_errors():
                listing = system.ls(folder, detail=True)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                continue
            if folder == root:
                raise
            yield folder, error
            continue
        folders = []
        for facts in sorted(listing, key=lambda facts: str(facts["name"])):
            name = str(facts["name"]).rstrip("/")
            if facts["type"] != "directory":
                yield name, None
            elif name != folder and not os.path.basename(name).startswith("."):
                folders.append(name)
        waiting += reversed(folders)


def _is_wanted(base: str) -> bool:
    return not base.startswith(".") and (is_video(base) or is_tar(base))


def _address(name: str, like: str) -> str:
    """The address of what a file system calls `name`, written like another one."""
    kind, _, rest = like.partition("://")
    _, chain, outer = rest.partition("::")
    return f"{kind}://{name}{chain}{outer}" if not is_address(name) else name


def _members(tar: str, where: str) -> Iterator[Found]:
    """The videos in a tar file, to be read where they are. A damaged one has a row of its own after its whole members."""
    links = end = 0
    try:
        with ByteRange(tar).open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the list of them might not fit into memory
                if not end <= member.offset_data <= archive.offset:
                    raise tarfile.ReadError("a member of less than no bytes")
                end = archive.offset
                parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
                if not parts or not is_video(parts[-1]) or any(part.startswith(".") for part in parts):
                    continue
                links += member.issym() or member.islnk()
                if member.isfile():
                    size = 0 if member.issparse() else member.size
                    place = ByteRange(tar, member.offset_data, size)
                    yield Video(f"{tar}/{member.name}", place), f"{where}/{member.name}"
            file.seek(archive.offset)
            after = file.read(tarfile.BLOCKSIZE)
            if after.strip(b"\0"):  # tarfile takes it for the end
                raise tarfile.ReadError("a damaged header")
            if not after:
                _say_once(f"'{as_text(tar)}' has no mark at its end; it may have been cut short between two videos")
    except UserError:
        raise
    except (tarfile.TarError, *CLIP_ERRORS) as error:
        _say_once(f"cannot read '{as_text(tar)}' to its end: {error}; it has a row in place of what follows")
        yield Video(tar, Path(tar) if not is_address(tar) else ByteRange(tar)), where
    if links:
        _say_once(f"'{as_text(tar)}' has {links} links in place of videos, which are left out; unpack it to score them")


@lru_cache(maxsize=1000)
def _say_once(text: str) -> None:
    """Inputs are gone through more than once: to check, to score and to count them."""
    logger.info(text)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say: a file that cannot be read
