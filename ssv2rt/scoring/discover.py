"""Finds the videos behind the inputs: files, folders, tar files, URLs, glob patterns, lists, and names on stdin."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.sqlite_store import SeenNames
from ssv2rt.scoring.video_sources import (
    COMPRESSED_TAR_SUFFIXES,
    FILE_SCHEME,
    FoundVideo,
    Video,
    log_once,
    named_by_url,
    path_of_file_url,
    videos_at_address,
    videos_at_path,
    videos_below,
)
from ssv2rt.video.storage import is_address

STDIN = "-"
_CHUNK, _LONGEST_NAME = 1 << 16, 1 << 15
"""Bytes of a list that are read at once, and of a name in it."""
_STREAMS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp", "rist"})
_VIDEO = re.compile(rb"\x1aE\xdf\xa3|RIFF|OggS|FLV\x01|\0\0\x01\xba|.{4}(ftyp|moov|mdat)|G.{187}G", re.DOTALL)
"""How files of video begin: Matroska, AVI, Ogg, Flash, MPEG, MP4 and transport streams."""
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|[^/]*\\")


@dataclass(frozen=True)
class Shard:
    """One of several disjoint, roughly equal parts of the videos. A hash of its name decides a video's shard."""

    index: int
    """From 1."""
    count: int

    def __contains__(self, name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses text like 3/16.

        Raises:
            UsageError: the text is malformed or out of range.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UsageError(f"--shard {text}: write which of how many, counted from 1, like 3/16")
        return cls(int(index), int(count))


def check_inputs(inputs: Iterable[str]) -> None:
    """Checks that there is something to score, without listing all of it.

    Raises:
        UsageError, UserError: see `discover`.
    """
    inputs = list(inputs)
    if STDIN not in inputs:
        firsts = [next(videos_of_input(name), None) for name in inputs]  # also raises if one of them does not exist
        if not any(firsts):
            raise no_videos_error(inputs)


def discover(inputs: Iterable[str]) -> Iterator[Video]:
    """Yields every video once.

    An input is a file, a folder, a tar file, a URL such as s3://bucket/clips, a pattern such as `clips/**/*.mp4`,
    `@list.txt` with a name on each line, or `-` for names on stdin. Files that are named directly are taken whatever their
    extension. Folders are searched by extension, without hidden files. A list may name files that do not exist: they are
    yielded too, and get an error row.

    Raises:
        UsageError: an input does not exist, or a pattern matches nothing.
        UserError: the inputs contain no video.
    """
    inputs = list(inputs)
    seen = SeenNames()
    found = False
    for name in inputs:
        for video, where in videos_of_input(name):
            if seen.add(where):
                found = True
                yield video
    if not found:
        raise no_videos_error(inputs)


def no_videos_error(inputs: Iterable[str]) -> UserError:
    names = ", ".join(f"'{name}'" for name in inputs)
    return UserError(f"no videos in {names}; looked for .webm, .mp4, .avi, .mkv, .mov and other video extensions")


def videos_of_input(name: str) -> Iterator[FoundVideo]:
    path = Path(name)
    if name.partition("://")[0].lower() in _STREAMS and is_address(name):
        raise UsageError(
            f"'{name}' is a live stream, which has no end; record it first: ffmpeg -i '{name}' -c copy FILE.mkv"
        )
    try:
        if name == STDIN:
            yield from _videos_at_paths(_names_in_list(sys.stdin.buffer, "standard input"))
        elif path.is_dir() and name:
            yield from videos_below(path)
        elif name.lower().endswith(COMPRESSED_TAR_SUFFIXES):
            raise UsageError(
                f"'{name}' is compressed, but scoring needs random access to the videos; unpack it to a .tar or a folder"
            )
        elif os.path.lexists(path) and name:
            yield from videos_at_path(str(path))
        elif name.startswith(FILE_SCHEME):
            yield from named_by_url(videos_of_input(path_of_file_url(name)))
        elif is_address(name):
            yield from videos_at_address(name)
        elif name.startswith("@"):
            with open(name[1:], "rb") as lines:
                yield from _videos_at_paths(_names_in_list(lines, name[1:]))
        elif glob.has_magic(name):
            yield from _videos_at_paths(_matching_names(name))
        else:
            here = "write paths of this machine, with /" if _WINDOWS_PATH.match(name) else "check the path"
            raise UsageError(f"no file or folder '{name}'; {here}")
    except OSError as error:
        if is_address(name):
            raise UserError(
                f"cannot look into '{name}': {error}; check the address, and that you may read it"
            ) from None
        raise UsageError(f"no file or folder '{name}': {error.strerror or error}; check the path") from None


def _videos_at_paths(names: Iterable[str]) -> Iterator[FoundVideo]:
    return (found for name in names for found in videos_at_path(name))


def _names_in_list(file: IO[bytes], where: str) -> Iterator[str]:
    """Names separated by newlines, or by NUL bytes if there are any (as `find -print0` writes them).

    Raises:
        UsageError: it is no list of names, and perhaps endless.
    """
    rest, separator, without_name, windows_path = b"", b"\n", 0, ""
    begun = False
    while chunk := file.read1(_CHUNK):  # type: ignore[attr-defined]  # as much as is there, of a pipe
        if not begun and _VIDEO.match(chunk):
            raise UsageError(f"'{where}' is a video, and no list of names; write it to a file, and name that")
        begun = True
        rest += chunk
        separator = b"\0" if b"\0" in chunk else separator
        *lines, rest = rest.split(separator)
        names = [name for line in lines if (name := line.rstrip(b"\r") if separator == b"\n" else line)]
        without_name = 0 if names else without_name + len(chunk)
        if max(map(len, [rest, *names])) > _LONGEST_NAME or without_name > _CHUNK:
            raise UsageError(f"'{where}' is no list of names: it goes on and on without one; give a name on each line")
        for name in map(_decoded_name, names):
            windows_path = windows_path or (name if _WINDOWS_PATH.match(name) and not os.path.exists(name) else "")
            yield name
    if rest := rest.rstrip(b"\r\n"):
        yield _decoded_name(rest)
    if windows_path:
        log_once(
            f"'{where}' has paths of Windows, such as '{escape_non_utf8(windows_path)}', which are missing here; "
            f"write paths of this machine, with /"
        )


def _decoded_name(name: bytes) -> str:
    text = os.fsdecode(name)
    return text if is_address(text) else str(Path(text))


def _matching_names(pattern: str) -> Iterator[str]:
    found = False
    for name in glob.iglob(pattern, recursive=True):
        found = True
        if os.path.isdir(name):
            continue
        yield str(Path(name))
    if not found:
        raise UsageError(f"nothing fits '{pattern}'; check the pattern, and quote it")
