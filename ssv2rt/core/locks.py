"""Locks between processes, for files and folders that only one process may write at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


class LockedError(UserError):
    """Another process holds the lock, or another block of this one."""


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of `path` during the block.

        with exclusive(run.engines / "int8", "building"):
            ...

    The lock is a flock on the file `.NAME.lock` beside `path`, which says the process number and host of its owner, and what
    it does. The file is removed at the end of the block. The kernel frees the lock when its process ends, however that
    happens, so a file that a killed process left is taken over. Child processes that were forked within the block keep the
    lock as long as they live. On a file system without locks, a warning says so, and the block runs without one.

    Args:
        path: the file or folder to write, which need not exist. Missing folders above it are made.
        what: what the owner does to `path`, for the error message: "building", "training".
        wait: wait until the lock is free, and say so, instead of raising an error.

    Raises:
        LockedError: another process, or another block of this one, holds the lock.
        UserError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name[:100]}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, what, str(path), wait)
    except OSError as error:
        raise UserError(
            f"cannot write to '{path.parent}': {error.strerror or error}; use a folder that you can write to"
        ) from None
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{what}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # before the lock is free, so that no other process can hold this file
        os.close(descriptor)


def locks_held_in(folder: Path) -> list[str]:
    """The locks of files in a folder that processes hold, each as text: "process 7 on host is building 'engines/int8'"."""
    held = []
    for lock in sorted(folder.glob(".*.lock")):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner, what = _owner(file.read(300), "writing")
                held.append(f"{owner} is {what} '{folder / lock.name[1:].removesuffix('.lock')}'")
    return held


def _owner(text: bytes, what: str) -> tuple[str, str]:
    """Who holds a lock, and what for, from the content of its file; `what` if that does not say it."""
    owner, _, does = text.decode(errors="replace").partition("\n")
    return owner or "another process", does or what


def _locked(lock: Path, what: str, path: str, wait: bool) -> int:
    """Opens and locks the file, and returns its descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner, does = _owner(os.read(descriptor, 300), what)
            if not wait:
                os.close(descriptor)
                raise LockedError(f"{owner} is {does} '{path}'; wait for it to end, or stop it") from None
            logger.info(f"waiting for {owner}, which is {does} '{path}'")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning(f"no lock on '{lock}' ({error.strerror}); start no second process that is {what} '{path}'")
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)  # its last owner has removed the file since it was opened
