"""Which videos the user means: files, folders, tar files, addresses, patterns, lists, and names on stdin."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.scoring.sqlite_store import SeenNames
from ssv2rt.scoring.video_sources import LOCAL, PACKED, Found, Video, as_addresses, at_address, below, file_at, path_of
from ssv2rt.video.storage import is_address

STDIN = "-"


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of all videos, which their names decide; the same on every machine."""

    index: int
    """From 1."""
    count: int

    def __contains__(self, name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From a text like 3/16.

        Raises:
            UsageError: it is not written like that, or out of range.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UsageError(f"--shard {text}: write which of how many, counted from 1, like 3/16")
        return cls(int(index), int(count))


def check_inputs(inputs: Iterable[str]) -> None:
    """Looks whether there is anything to score, without going through all of it.

    Raises:
        UsageError, UserError: as `discover`.
    """
    inputs = list(inputs)
    if STDIN not in inputs:
        firsts = [next(_files(name), None) for name in inputs]  # each of them has to exist
        if not any(firsts):
            raise _nothing(inputs)


def discover(inputs: Iterable[str]) -> Iterator[Video]:
    """Every video, once: a file whatever it is called, a folder's videos by extension, without hidden ones.

    An input is a file, a folder, a tar file, an address such as s3://bucket/clips, a pattern such as `clips/**/*.mp4`,
    `@list.txt` with a name on each line, or `-` for names on stdin. Names in lists may be of files that are not there: each
    of them has a row of its own, too.

    Raises:
        UsageError: an input does not exist, or a pattern fits nothing.
        UserError: the inputs hold no video.
    """
    inputs = list(inputs)
    seen = SeenNames()
    found = False
    for name in inputs:
        for video, where in _files(name):
            if seen.add(where):
                found = True
                yield video
    if not found:
        raise _nothing(inputs)


def _nothing(inputs: Iterable[str]) -> UserError:
    names = ", ".join(f"'{name}'" for name in inputs)
    return UserError(f"no videos in {names}; looked for .webm, .mp4, .avi, .mkv, .mov and other video extensions")


def _files(name: str) -> Iterator[Found]:
    path = Path(name)
    try:
        if name == STDIN:
            yield from _all(_listed(sys.stdin.buffer))
        elif path.is_dir() and name:
            yield from below(path)
        elif name.lower().endswith(PACKED):
            raise UsageError(
                f"'{name}' is compressed, and clips are read at any place; unpack it to a .tar or a folder"
            )
        elif os.path.lexists(path) and name:
            yield from file_at(str(path))
        elif name.startswith(LOCAL):
            yield from as_addresses(_files(path_of(name)))
        elif is_address(name):
            yield from at_address(name)
        elif name.startswith("@"):
            with open(name[1:], "rb") as lines:
                yield from _all(_listed(lines))
        elif glob.has_magic(name):
            yield from _all(_fitting(name))
        else:
            raise UsageError(f"no file or folder '{name}'; check the path")
    except OSError as error:
        if is_address(name):
            raise UserError(
                f"cannot look into '{name}': {error}; check the address, and that you may read it"
            ) from None
        raise UsageError(f"no file or folder '{name}': {error.strerror or error}; check the path") from None


def _all(names: Iterable[str]) -> Iterator[Found]:
    return (found for name in names for found in file_at(name))


def _listed(lines: Iterable[bytes]) -> Iterator[str]:
    """Names, one on each line; where there are NUL bytes, as `find -print0` writes them, these divide them instead."""
    rest = b""
    for line in lines:
        rest += line
        if b"\0" in rest:
            *names, rest = rest.split(b"\0")
        elif rest.endswith(b"\n"):
            names, rest = [rest.rstrip(b"\r\n")], b""
        else:
            continue
        yield from (_named(name) for name in names if name)
    if rest:
        yield _named(rest)


def _named(name: bytes) -> str:
    text = os.fsdecode(name)
    return text if is_address(text) else str(Path(text))


def _fitting(pattern: str) -> Iterator[str]:
    found = False
    for name in glob.iglob(pattern, recursive=True):
        found = True
        if os.path.isdir(name):
            continue
        yield str(Path(name))
    if not found:
        raise UsageError(f"nothing fits '{pattern}'; check the pattern, and quote it")
