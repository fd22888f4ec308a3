"""All that is to be known of one clip's file."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import fields
from pathlib import Path

from ssv2rt.dataset.listing import as_text
from ssv2rt.video.container import CLIP_ERRORS, OK, BadVideo, reason_of
from ssv2rt.video.probe import VideoInfo, decode_fully, probe

Known = tuple[int, int, bool] | None
"""Size, time of change, and whether it has been decoded, of a file that has been looked at."""
Facts = dict[str, object]
"""The columns of a manifest's row that a file tells."""


def file_facts(folder: Path, files: list[tuple[str, Known]], decode: bool) -> list[Facts | None]:
    """What there is to know of some files; None for those that have not changed."""
    return [_facts_of(folder / path, known, decode) for path, known in files]


def _facts_of(path: Path, known: Known, decode: bool) -> Facts | None:
    facts: Facts = {"status": OK, "suspicion": "", "decoded": False}
    try:
        if as_text(str(path)) != str(path):
            raise BadVideo("name is no text")
        status = path.stat()
        if known and known[:2] == (status.st_size, status.st_mtime_ns) and (known[2] or not decode):
            return None
        facts |= {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        small = stat.S_ISREG(status.st_mode) and status.st_size <= 3 * _PIECE
        source: Path | bytes = path.read_bytes() if small else path  # small files are opened once
        info = probe(source)
        facts |= {name: getattr(info, name) for name in _PROBED}
        facts["hash"] = content_hash(source)
        facts["suspicion"] = "; ".join(suspicions(info))
        if decode:
            facts["decoded"] = True
            shown = decode_fully(source)
            if shown < info.frames - 2 - info.frames // 50:
                raise BadVideo("truncated")
    except CLIP_ERRORS as error:
        facts["status"] = reason_of(error)
    return facts


_PIECE = 64 << 10
_PROBED = [field.name for field in fields(VideoInfo) if field.name != "streams"]


def content_hash(source: Path | bytes) -> str:
    """16 hexadecimal digits of a file's size and content; of a large file's beginning, middle and end."""
    if isinstance(source, bytes):
        size, pieces = len(source), [source]
    else:
        size = source.stat().st_size
        with source.open("rb") as file:
            pieces = []
            for start in (0, (size - _PIECE) // 2, size - _PIECE) if size > 3 * _PIECE else (0,):
                file.seek(start)
                pieces.append(file.read(_PIECE if size > 3 * _PIECE else size))
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def suspicions(info: VideoInfo) -> list[str]:
    """What is suspicious about a video that can be used."""
    return [
        text
        for odd, text in (
            (info.frames == 1, "a single frame"),
            (info.key_frames == 0, "no key frame"),
            (info.streams > 1, f"{info.streams} video streams, of which the best is used"),
            (info.rate > 240, f"{info.rate:.0f} frames per second"),
            (0 < info.rate < 1, f"{info.rate:.2f} frames per second"),
            (min(info.width, info.height) < 32, f"only {info.width}x{info.height} pixels"),
            (info.duration > 600, f"lasts {info.duration:.0f} seconds"),
        )
        if odd
    ]
