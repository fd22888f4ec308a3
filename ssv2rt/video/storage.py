"""Videos that are not local files: members of tar files, and objects at addresses such as s3://bucket/a.webm.

Addresses are read by fsspec, which has a file system for each kind of storage.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ssv2rt.core.errors import UserError


def is_address(name: str) -> bool:
    """Whether a name is an address (s3://, gs://, memory://, file://, ...) and not a path."""
    kind, separator, _ = name.partition("://")
    return (
        bool(separator) and kind.isascii() and kind[:1].isalpha() and kind.replace("+", "").replace("::", "").isalnum()
    )


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and what the address is called there.

    Raises:
        UserError: there is none, or its package is not installed.
        OSError: it cannot be reached.
    """
    from fsspec.core import url_to_fs

    kind = address.partition("://")[0]
    with storage_errors():
        try:
            system, path = url_to_fs(address)
        except ImportError as error:
            raise UserError(f"'{address}': {error}; install that package beside ssv2rt") from None
        except ValueError as error:
            if not str(error).startswith("Protocol not known"):
                raise
            from fsspec import available_protocols

            from ssv2rt.core.errors import nearest

            raise UserError(
                f"'{address}': fsspec knows no '{kind}://'{nearest(kind, available_protocols())}; check the address"
            ) from None
    return system, str(path)


def is_there(address: str) -> bool:
    """Whether an address exists; False where its storage cannot be reached."""
    try:
        with storage_errors():
            system, path = file_system(address)
            system.invalidate_cache()
            return bool(system.exists(path))
    except OSError:
        return False


def forget_local_copies() -> None:
    """Forgets fsspec's file systems that keep copies in a temporary folder (`simplecache::` and others), as it is removed."""
    from fsspec.core import get_filesystem_class

    if "fsspec.implementations.cached" in sys.modules:
        for kind in ("simplecache", "filecache", "blockcache"):
            get_filesystem_class(kind).clear_instance_cache()


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of bytes of a file or address. It has the reading methods of a `Path`."""

    file: str
    """A path, or an address."""
    start: int = 0
    """Offset of the first byte."""
    size: int = -1
    """Number of bytes; -1 for all to the end."""

    def length(self) -> int:
        """Bytes. Raises OSError."""
        if self.size >= 0:
            return self.size
        with storage_errors():
            if not is_address(self.file):
                return os.stat(self.file).st_size - self.start
            system, path = file_system(self.file)
            return int(system.size(path) or 0) - self.start

    def read_bytes(self) -> bytes:
        """The bytes; fewer than `size` if the file ends earlier. Raises OSError."""
        with storage_errors():
            if is_address(self.file):
                system, path = file_system(self.file)
                end = self.start + self.size if self.size >= 0 else None
                return bytes(system.cat_file(path, start=self.start or None, end=end))
            with open(self.file, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Opens the range as a seekable file. Raises OSError."""
        assert mode == "rb"
        with storage_errors():
            if is_address(self.file):
                system, path = file_system(self.file)
                file: IO[bytes] = system.open(path, "rb")
            else:
                system, file = None, open(self.file, "rb")  # noqa: SIM115  # the caller closes it
            if system is None and not self.start and self.size < 0:
                return file
            return io.BufferedReader(_Stretch(file, self.start, self.length(), system))

    def __str__(self) -> str:
        return self.file if self.size < 0 else f"{self.file}, bytes {self.start} to {self.start + self.size}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InMemory:
    """The bytes of a video under a name. It has the reading methods of a `Path`."""

    name: str
    data: bytes

    def length(self) -> int:
        return len(self.data)

    def read_bytes(self) -> bytes:
        return self.data

    def open(self, mode: str = "rb") -> IO[bytes]:
        assert mode == "rb"
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


VideoLocation = Path | ByteRange | InMemory
"""Path, byte range or named bytes of a video."""
VideoSource = VideoLocation | bytes
"""A video by its location, or its bytes."""


def open_bytes(source: VideoSource) -> IO[bytes]:
    """Opens a video as a seekable file of bytes. Raises OSError; also for a pipe, on which one could wait for ever."""
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(source))
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


class _Stretch(io.RawIOBase):
    """A range of bytes of an open file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int, system: Any) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0
        self._system = system  # an archive's file system closes its files when nothing holds it any more

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        with storage_errors():
            self._file.seek(self._start + self._at)
            data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns the errors of every kind of storage into OSError."""
    try:
        yield
    except (OSError, UserError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
