"""Which videos the user means: files, folders with all below them, patterns, lists, and names on stdin."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ssv2rt.console import say
from ssv2rt.dataset.listing import as_text, is_video
from ssv2rt.errors import UsageError, UserError
from ssv2rt.scoring.seen import Seen

STDIN = "-"
_SORTED = 10_000
"""Names of a folder that are put in order at once; more come in parts, since all of them may not fit into memory."""


@dataclass(frozen=True)
class Share:
    """One of several equal shares of all videos, which their names decide; the same on every machine."""

    index: int
    """From 1."""
    count: int

    def __contains__(self, path: Path) -> bool:
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    @classmethod
    def parse(cls, text: str) -> Share:
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
        for name in inputs:
            next(_files(name), None)  # each of them has to exist
        next(discover(inputs))


def discover(inputs: Iterable[str]) -> Iterator[Path]:
    """Every video, once: a file whatever it is called, a folder's videos by extension, without hidden ones.

    An input is a file, a folder, a pattern such as `clips/**/*.mp4`, `@list.txt` with a name on each line, or `-` for names
    on stdin. Names in lists may be of files that are not there: each of them has a row of its own, too.

    Raises:
        UsageError: an input does not exist, or a pattern fits nothing.
        UserError: the inputs hold no video.
    """
    inputs = list(inputs)
    seen = Seen()
    found = False
    for name in inputs:
        for file, where in _files(name):
            if seen.add(where or os.path.realpath(file)):
                found = True
                yield file
    if not found:
        names = ", ".join(f"'{name}'" for name in inputs)
        raise UserError(f"no videos in {names}; looked for .webm, .mp4, .avi, .mkv, .mov and other video extensions")


def shown(path: Path) -> str:
    """A path as text that every format can hold: bytes that are no UTF-8 are written \\xff."""
    return as_text(str(path))


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """Videos, each with where it really is, if that is known."""
    path = Path(name)
    try:
        if name == STDIN:
            yield from ((file, "") for file in _listed(sys.stdin.buffer))
        elif path.is_dir() and name:
            yield from _below(path)
        elif os.path.lexists(path) and name:
            yield path, ""
        elif name.startswith("@"):
            with open(name[1:], "rb") as lines:
                yield from ((file, "") for file in _listed(lines))
        elif glob.has_magic(name):
            yield from ((file, "") for file in _fitting(name))
        else:
            raise UsageError(f"no file or folder '{name}'; check the path")
    except OSError as error:
        raise UsageError(f"no file or folder '{name}': {error.strerror}; check the path") from None


def _listed(lines: Iterable[bytes]) -> Iterator[Path]:
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
        yield from (Path(os.fsdecode(name)) for name in names if name)
    if rest:
        yield Path(os.fsdecode(rest))


def _fitting(pattern: str) -> Iterator[Path]:
    found = False
    for name in glob.iglob(pattern, recursive=True):
        found = True
        if os.path.isdir(name):
            continue
        yield Path(name)
    if not found:
        raise UsageError(f"nothing fits '{pattern}'; check the pattern, and quote it")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say: a file that cannot be read


def _below(root: Path) -> Iterator[tuple[Path, str]]:
    """Videos below a folder, each folder's own first, with where they really are. Links are followed; a loop of them ends."""
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
                        elif is_video(entry.name):
                            # Following every path from the root would be most of the work.
                            where = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
                            yield Path(entry.path), where
        except OSError as error:
            say(f"cannot look into '{shown(folder)}': {error.strerror}; it has a row in place of what is in it")
            yield folder, real
        waiting += reversed(folders)
