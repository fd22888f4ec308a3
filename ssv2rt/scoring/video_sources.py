"""Finds videos below folders, in tar files, and at URLs such as s3://bucket/clips."""

from __future__ import annotations

import logging
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.listing import PICTURE_SUFFIXES, escape_non_utf8, is_video
from ssv2rt.scoring.sqlite_store import SeenNames
from ssv2rt.video.storage import ByteRange, VideoLocation, file_system, is_address, storage_errors

logger = logging.getLogger(__name__)


_SORT_CHUNK = 10_000
"""Entries of a folder that are sorted at once. Larger folders are sorted in chunks, to limit memory."""
FILE_SCHEME = "file://"
"""URLs with this scheme are opened as local paths, so that symbolic links, pipes and FFmpeg work as usual."""
_LONGEST_TAR_HEADER = 1 << 20
"""Bytes."""
_NAMES_SHOWN = 3
_FRAME_FOLDERS = "folders of pictures"
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Video:
    """A video to score."""

    name: str
    """The exact name for its row: a path, a URL, or that of a tar file followed by the member's name."""
    location: VideoLocation
    by_pyav: bool = False
    """Whether PyAV must decode it, because it was in flight when its worker died."""

    @classmethod
    def at(cls, name: str) -> Video:
        """The video at a path or URL."""
        return cls(name, ByteRange(name) if is_address(name) else Path(name))


FoundVideo = tuple[Video, str]
"""A video and its real path, by which two names of the same file are recognized."""


def is_tar(name: str) -> bool:
    """Whether a file name has the extension of an uncompressed tar file."""
    return name.lower().endswith(".tar")


def videos_at_path(name: str) -> Iterator[FoundVideo]:
    """The videos of the file at a path or URL: the members of a tar file, or else the file itself, whatever its extension.

    Raises:
        UserError: the package for the URL's scheme is not installed.
    """
    if name.startswith(FILE_SCHEME):
        yield from named_by_url(videos_at_path(path_of_file_url(name)))
        return
    if is_address(name):
        _check_installed(name.partition("://")[0])
    where = name if is_address(name) else os.path.realpath(name)
    if is_tar(name) and (is_address(name) or os.path.isfile(name)):
        yield from _videos_in_tar(name, where)
    else:
        yield Video.at(name), where


def path_of_file_url(address: str) -> str:
    """The absolute path of a file:// URL."""
    return os.path.abspath(address.removeprefix(FILE_SCHEME))


def named_by_url(found: Iterator[FoundVideo]) -> Iterator[FoundVideo]:
    """The same videos, with file:// URLs as names instead of paths."""
    return ((replace(video, name=f"{FILE_SCHEME}{video.name}"), where) for video, where in found)


@cache
def _check_installed(kind: str) -> None:
    """Raises UserError once if a storage package is missing, instead of giving every URL an error row."""
    from fsspec import get_filesystem_class

    for part in kind.split("::"):
        try:
            get_filesystem_class(part)
        except ImportError as error:
            raise UserError(f"'{kind}://': {error}; install that package beside ssv2rt") from None
        except ValueError:
            return  # unknown scheme: each row gets an error


def videos_below(root: Path) -> Iterator[FoundVideo]:
    """Videos below a folder, those of each folder before its subfolders. Symbolic links are followed, each folder once."""
    seen: set[str] = set()
    left_out = _LeftOut(str(root))
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        videos = pictures = 0
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        folders: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                while part := sorted(islice(entries, _SORT_CHUNK), key=lambda entry: entry.name):
                    for entry in part:
                        if entry.name.startswith("."):
                            continue
                        if _is_folder(entry):
                            folders.append(Path(entry.path))
                        elif _is_video_or_tar(entry.name):
                            videos += 1
                            # Calling realpath on every file would take most of the time.
                            where = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
                            path = Path(entry.path)
                            yield from (
                                _videos_in_tar(str(path), where)
                                if is_tar(entry.name)
                                else [(Video(str(path), path), where)]
                            )
                        elif entry.name.lower().endswith(COMPRESSED_TAR_SUFFIXES):
                            left_out.add("compressed archives", entry.path)
                        else:
                            pictures += entry.name.lower().endswith(PICTURE_SUFFIXES)
        except OSError as error:
            log_once(
                f"cannot list '{escape_non_utf8(str(folder))}': {error.strerror}; it gets an error row instead of its videos"
            )
            yield Video(str(folder), folder), real
        if pictures and not videos:
            left_out.add(_FRAME_FOLDERS, str(folder))
        waiting += reversed(folders)
    left_out.log()


def videos_at_address(address: str) -> Iterator[FoundVideo]:
    """The videos at a URL of a file, a folder, or a pattern.

    Raises:
        UsageError: nothing is there.
        UserError: the URL's scheme is unknown, or its package is not installed.
    """
    import glob

    system, path = file_system(address)
    found = False
    with storage_errors():
        if glob.has_magic(path) and not system.exists(path):
            for name in system.glob(path):
                found = True
                if _is_video_or_tar(os.path.basename(name)):
                    yield from videos_at_path(_qualified_address(name, address))
        elif system.isfile(path):
            found = True
            yield from videos_at_path(address)
        else:
            for name, error in _walk_address(system, path):
                found = True
                here = _qualified_address(name, address)
                if error:
                    log_once(f"cannot list '{here}': {error}; it gets an error row instead of its videos")
                    yield Video.at(here), here
                elif _is_video_or_tar(os.path.basename(name)):
                    yield from videos_at_path(here)
    if not found:
        raise UsageError(f"nothing at '{address}'; check the address")


def _walk_address(system: Any, root: str) -> Iterator[tuple[str, OSError | None]]:
    """Files below a folder, those of each folder before its subfolders; and folders that cannot be listed, with the error.

    fsspec's own `walk` silently skips such folders. Raises OSError if `root` cannot be listed.
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


def _is_video_or_tar(base: str) -> bool:
    return not base.startswith(".") and (is_video(base) or is_tar(base))


def _qualified_address(name: str, like: str) -> str:
    """The URL of `name`, a path as the file system lists it, with the scheme and chained parts of the URL `like`."""
    kind, _, rest = like.partition("://")
    _, chain, outer = rest.partition("::")
    return f"{kind}://{name}{chain}{outer}" if not is_address(name) else name


def _videos_in_tar(tar: str, where: str) -> Iterator[FoundVideo]:
    """The videos in a tar file, as byte ranges of it. If it is damaged, the tar file itself follows the intact members.

    Of members with the same name the first is taken. What is left out is logged by name.
    """
    end, seen, left_out = 0, SeenNames(), _LeftOut(tar)
    try:
        with ByteRange(tar).open() as file, tarfile.open(fileobj=_BoundedReads(file), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile's list of members may not fit into memory
                if not end <= member.offset_data <= archive.offset:
                    raise tarfile.ReadError("a member with a negative size")
                end = archive.offset
                parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
                if not parts or any(part.startswith(".") for part in parts) or member.isdir():
                    continue
                if parts[-1].lower().endswith((".tar", *COMPRESSED_TAR_SUFFIXES)):
                    left_out.add("archives inside it", member.name)
                elif not is_video(parts[-1]):
                    continue
                elif not member.isfile():
                    left_out.add("links in place of videos", member.name)
                elif not seen.add(member.name):
                    left_out.add("further members with the name of an earlier one", member.name)
                else:
                    size = 0 if member.issparse() else member.size
                    location = ByteRange(tar, member.offset_data, size)
                    yield Video(f"{tar}/{member.name}", location), f"{where}/{member.name}"
            file.seek(archive.offset)
            after = file.read(tarfile.BLOCKSIZE)
            if after.strip(b"\0"):  # tarfile silently takes a damaged header for the end
                raise tarfile.ReadError("a damaged header")
            if not after:
                log_once(f"'{escape_non_utf8(tar)}' has no end-of-archive mark; it may be truncated between two videos")
    except UserError:
        raise
    except Exception as error:  # tarfile meets damaged headers with whatever its parsing code runs into
        log_once(
            f"cannot read '{escape_non_utf8(tar)}' to its end: {str(error) or type(error).__name__}; "
            f"it gets an error row instead of what follows"
        )
        yield Video(tar, Path(tar) if not is_address(tar) else ByteRange(tar)), where
    left_out.log()


class _BoundedReads:
    """A tar file that tarfile may not read much of at once: a header can declare gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_TAR_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


class _LeftOut:
    """Counts what is not scored in a tar file or below a folder, by kind, with the first names."""

    def __init__(self, place: str) -> None:
        self._place, self._counts, self._names = place, Counter[str](), defaultdict[str, list[str]](list)

    def add(self, kind: str, name: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= _NAMES_SHOWN:
            self._names[kind].append(f"'{escape_non_utf8(name)}'")

    def log(self) -> None:
        for kind, count in self._counts.items():
            names = ", ".join(self._names[kind]) + (", ..." if count > _NAMES_SHOWN else "")
            remedy = "make videos of them" if kind == _FRAME_FOLDERS else "unpack them"
            log_once(
                f"'{escape_non_utf8(self._place)}' has {count} {kind}, which are left out: {names}; {remedy} to score them"
            )


@lru_cache(maxsize=1000)
def log_once(text: str) -> None:
    """Logs a message once, though inputs are listed more than once: to check, to score and to count them."""
    logger.warning(text)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # such as a link to itself, which is then treated as an unreadable file
