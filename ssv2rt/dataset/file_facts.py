"""Probes video files: their properties, content hash, and what is wrong with them."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

from ssv2rt.core.worker_pool import Worker
from ssv2rt.video.container import CLIP_ERRORS, OK, BadVideo, reason_of
from ssv2rt.video.probe import VideoInfo, decode_fully, probe

SavedState = tuple[int, int, bool] | None
"""What a manifest already has on a file: size in bytes, modification time in ns, and whether it was decoded. None for a file
that it does not have."""
ProbeFile = tuple[str, SavedState]
"""A file to probe: its path, and its saved state."""
ProbeFacts = dict[str, object]
"""The values for `manifest.PROBE_FIELDS` of one file."""


def prober(*, folder: Path, decode: bool, batch_size: int) -> Worker[ProbeFile, ProbeFacts | None]:
    """What a worker process does to get `file_facts`: results come in parts, so that it does not seem to hang.

    Args:
        folder: what the files' paths are relative to.
        decode: see `file_facts`.
        batch_size: files in a batch.
    """

    def run(batches: Iterable[list[tuple[int, ProbeFile]]]) -> Iterator[list[tuple[int, ProbeFacts | None]]]:
        for batch in batches:
            part, part_ends = [], time.monotonic() + _SECONDS_PER_PART
            for number, (path, saved_state) in batch:
                part.append((number, file_facts(folder / path, saved_state, decode)))
                if time.monotonic() > part_ends:
                    yield part
                    part, part_ends = [], time.monotonic() + _SECONDS_PER_PART
            yield part

    return Worker(run, batch_size, _BATCHES_AHEAD)


_SECONDS_PER_PART = 0.5
_BATCHES_AHEAD = 4


def file_facts(path: Path, saved_state: SavedState, decode: bool) -> ProbeFacts | None:
    """Probes a file. Returns None if it has not changed.

    Args:
        path: the file.
        saved_state: what is known of it.
        decode: also decode every frame, unless that was done before. A video without a key frame is decoded in any case.
    """
    facts: ProbeFacts = {"status": OK, "suspicion": "", "decoded": False}
    try:
        status = path.stat()
        if saved_state and saved_state[:2] == (status.st_size, status.st_mtime_ns) and (saved_state[2] or not decode):
            return None
        facts |= {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        small = stat.S_ISREG(status.st_mode) and status.st_size <= 3 * _PIECE_BYTES
        source: Path | bytes = path.read_bytes() if small else path  # a small file is opened only once
        info = probe(source)
        facts |= {name: getattr(info, name) for name in _PROBED_FIELDS}
        facts["hash"] = content_hash(source)
        facts["suspicion"] = "; ".join(find_anomalies(info))
        if decode or not info.key_frames:  # without a key frame, only decoding tells whether the video can be used
            facts["decoded"] = True
            shown = decode_fully(source)
            if shown != info.frames:
                raise BadVideo("corrupt")
    except CLIP_ERRORS as error:
        facts["status"] = reason_of(error)
    return facts


_PIECE_BYTES = 64 << 10
_PROBED_FIELDS = [field.name for field in fields(VideoInfo) if field.name != "streams"]


def content_hash(source: Path | bytes) -> str:
    """A hash of a file's size and content, as 16 hex digits. Of a large file only the start, middle and end are read."""
    if isinstance(source, bytes):
        size, pieces = len(source), [source]
    else:
        size = source.stat().st_size
        with source.open("rb") as file:
            pieces = []
            for start in (0, (size - _PIECE_BYTES) // 2, size - _PIECE_BYTES) if size > 3 * _PIECE_BYTES else (0,):
                file.seek(start)
                pieces.append(file.read(_PIECE_BYTES if size > 3 * _PIECE_BYTES else size))
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def find_anomalies(info: VideoInfo) -> list[str]:
    """Unusual properties of a usable video, for the column `suspicion`. Each is a phrase such as 'a single frame'."""
    return [
        text
        for odd, text in (
            (info.frames == 1, "a single frame"),
            (info.streams > 1, f"{info.streams} video streams, of which one is used"),
            (info.rate > 240, f"{info.rate:.0f} frames per second"),
            (0 < info.rate < 1, f"{info.rate:.2f} frames per second"),
            (min(info.width, info.height) < 32, f"only {info.width}x{info.height} pixels"),
            (info.duration > 600, f"{info.duration:.0f} seconds long"),
        )
        if odd
    ]
