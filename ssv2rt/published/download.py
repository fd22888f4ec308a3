"""Downloads published weights into the cache folder, once. A download that was cut continues where it ended."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http
import http.client
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

from ssv2rt.core.atomic_files import flush_to_disk, write_text
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.locks import exclusive
from ssv2rt.core.progress import Progress
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.published.catalog import Published, WeightsFile

logger = logging.getLogger(__name__)

_SECONDS = 30
"""Without an answer, until a connection counts as lost."""
_BLOCK = 1 << 20
_NOT_WEIGHTS = ((b"<", "a web page"), (b"version https://git-lfs", "a Git LFS pointer"), (b"", "an empty file"))
"""What is often found in place of weights, by how it begins; the last for a file without content."""


def weights_folder() -> Path:
    return cache_folder() / "weights"


def downloaded(weights: WeightsFile) -> Path | None:
    """The file if it is here already: in the cache folder or, if its hash is published, where `torch.hub` has put it."""
    places = [weights_folder()]
    if weights.sha256:  # another file may have the same name there
        home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
        places.append(Path(home).expanduser() / "hub" / "checkpoints")
    return next((file for place in places if (file := place / weights.file).is_file()), None)


def fetch(weights: WeightsFile) -> tuple[Path, str]:
    """The file and its SHA-256. It is downloaded unless it is here already.

    Raises:
        UserError: there is no network, the server has something else, the file is not the published one, or the cache folder
            cannot be written. The message says which file to get from where, and what to do with it.
    """
    file = downloaded(weights)
    if file is None:
        file = weights_folder() / weights.file
        fix = f"mend that, or set SSV2RT_CACHE to another folder; or {_by_hand(weights)}"
        with os_errors_as_user_errors(f"cannot keep '{weights.file}' in '{file.parent}'", fix):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(file.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            with exclusive(file, "downloading", wait=True):
                if not file.is_file():  # another process may have downloaded it meanwhile
                    return file, _download(weights, file)
    return file, check_hash(file, weights)


def check_hash(file: Path, weights: WeightsFile) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it is not the published one, or not the one that was recorded first.
    """
    check_is_weights(file, str(file))
    found, (expected, by) = sha256_of(file), _expected(weights)
    if not found.startswith(expected):
        raise UserError(
            f"'{file}' has the SHA-256 {found[:16]}..., and {expected[:16]} is {by}: it is damaged or another file; "
            f"remove it, and repeat `ssv2rt import {weights.name}`; or, if you trust it, add --as {weights.name}"
        )
    return found


def _expected(weights: WeightsFile) -> tuple[str, str]:
    """The beginning of the SHA-256 that a file should have, and where it is from; both empty if it is not known."""
    record = _record_of(weights)
    if not weights.sha256 and record.is_file():
        return record.read_text(encoding="utf-8", errors="replace").partition(" ")[0], "recorded of the first one"
    return weights.sha256, "published" if weights.sha256 else ""


def record_hash(weights: WeightsFile, digest: str) -> None:
    """Keeps the hash of a good file, to compare with if it comes again, unless one is published or kept."""
    if _expected(weights)[0]:
        return
    logger.info(f"no SHA-256 of {weights.file} is published; recording the one of this file: {digest}")
    with contextlib.suppress(OSError):  # a cache that cannot be written is done without
        weights_folder().mkdir(parents=True, exist_ok=True)
        write_text(_record_of(weights), f"{digest}  {weights.file}\n")


def _record_of(weights: WeightsFile) -> Path:
    return weights_folder() / f"{weights.file}.sha256"


def check_is_weights(file: Path, source: str) -> None:
    """Raises UserError if a file is what is often found in place of weights, such as the page of an error."""
    with file.open("rb") as content:
        head = content.read(512).lstrip()
    for begins, what in _NOT_WEIGHTS:
        if head.startswith(begins) and (begins or not head):
            raise UserError(f"'{source}' is {what}, and no file of weights; get it again from its publisher")


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _by_hand(weights: WeightsFile) -> str:
    name = f" as '{weights.saved_as}'" if weights.saved_as else ""
    text = f"get {weights.url} by other means, and put it into '{weights_folder()}'{name}"
    return text + (f", or `ssv2rt import {weights.file}`" if isinstance(weights, Published) else "")


def _download(weights: WeightsFile, file: Path) -> str:
    """Downloads to `file`, and returns the SHA-256. The caller holds the lock of the file."""
    partial = file.with_name(f".{file.name}.part")
    try:
        _receive(weights, partial)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
        reason = getattr(error, "reason", None) or error
        text = (str(reason).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(f"cannot download '{weights.name}' ({code}{text}); {_by_hand(weights)}") from None
    try:
        check_is_weights(partial, weights.url)
        found, (expected, by) = sha256_of(partial), _expected(weights)
        if not found.startswith(expected):
            raise UserError(
                f"{weights.url} has the SHA-256 {found[:16]}..., and {expected[:16]} is {by}: the file was damaged on its way "
                "or has been replaced; try again"
            )
    except UserError:
        _remove_partial(partial)
        raise
    record_hash(weights, found)
    flush_to_disk(partial)
    os.replace(partial, file)
    _remove_partial(partial)
    return found


def _receive(weights: WeightsFile, partial: Path) -> None:
    """Fetches the rest of a file to `partial`; all of it if the server cannot continue, or has another version by now.

    Raises:
        URLError, HTTPException, ConnectionError, TimeoutError: no connection, an error of the server, or a lost connection.
        ValueError: not a URL.
    """
    there, version = _received(partial)
    headers = {"User-Agent": "ssv2rt", **({"Range": f"bytes={there}-", "If-Range": version} if there else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(weights.url, headers=headers), timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not there:
            raise
        _remove_partial(partial)  # it was complete, or longer than the file is
        _receive(weights, partial)
        return
    with answer:
        done = there if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        size = f", {total / 1e6:.0f} MB" if total else ""
        logger.info(f"{'continuing with' if done else 'downloading'} {weights.url}{size}")
        if not done:
            _version_file(partial).write_text(answer.headers.get("ETag", ""), encoding="utf-8")
        blocks = total and -(-total // _BLOCK)
        with (
            partial.open("ab" if done else "wb") as file,
            Progress(f"downloading {weights.name}", blocks, "MiB") as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                done += len(block)
                bar.show(-(-done // _BLOCK))
    if total is not None and done < total:
        raise ConnectionError(f"the connection was lost after {done} of {total} bytes; repeat it to continue")


def _received(partial: Path) -> tuple[int, str]:
    """How many bytes are there to continue after, and the ETag of the file that they are from."""
    version = _version_file(partial)
    if not (partial.is_file() and version.is_file()) or not (
        tag := version.read_text(encoding="utf-8", errors="replace")
    ):
        return 0, ""
    return partial.stat().st_size, tag


def _version_file(partial: Path) -> Path:
    return partial.with_suffix(".version")


def _remove_partial(partial: Path) -> None:
    for file in (partial, _version_file(partial)):
        file.unlink(missing_ok=True)
