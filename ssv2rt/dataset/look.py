"""All that is to be known of one clip's file."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

from ssv2rt.dataset.probe import VideoInfo, decode_fully, probe
from ssv2rt.dataset.video import CLIP_ERRORS, OK, BadVideo, reason_of

Known = tuple[int, int, bool] | None
"""Size, time of change, and whether it has been decoded, of a file that has been looked at."""
Facts = dict[str, object]
"""The columns of a manifest's row that a file tells."""


def look_at(folder: Path, files: list[tuple[str, Known]], decode: bool) -> list[Facts | None]:
    """What there is to know of some files; None for those that have not changed."""
    return [_facts_of(folder / path, known, decode) for path, known in files]


def _facts_of(path: Path, known: Known, decode: bool) -> Facts | None:
    facts: Facts = {"status": OK, "suspicion": "", "decoded": False}
    try:
        status = path.stat()
        if known and known[:2] == (status.st_size, status.st_mtime_ns) and (known[2] or not decode):
            return None
        facts |= {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        info = probe(path)
        facts |= {name: getattr(info, name) for name in _PROBED}
        facts["hash"] = content_hash(path, status.st_size)
        facts["suspicion"] = "; ".join(oddities(info))
        if decode:
            shown = decode_fully(path)
            if shown < info.frames - 2 - info.frames // 50:
                raise BadVideo("truncated")
            facts["decoded"] = True
    except CLIP_ERRORS as error:
        facts["status"] = reason_of(error)
    return facts


_PROBED = [field.name for field in fields(VideoInfo) if field.name != "streams"]


def content_hash(path: Path, size: int) -> str:
    """16 hexadecimal digits of a file's size, and 64 KiB each of its beginning, middle and end."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    piece = 64 << 10
    with path.open("rb") as file:
        if size <= 3 * piece:
            digest.update(file.read())
        else:
            for start in (0, (size - piece) // 2, size - piece):
                file.seek(start)
                digest.update(file.read(piece))
    return digest.hexdigest()


def oddities(info: VideoInfo) -> list[str]:
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
