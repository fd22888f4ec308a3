"""Builds the manifest of a data set by probing every clip once, in parallel.

Saved results of unchanged files are reused: a repeated call resumes an interrupted one, and later calls probe only new files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import WorkerPool, WorkerSettings
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.file_facts import ProbeFacts, ProbeFile, SavedState, prober
from ssv2rt.dataset.listing import Listing, escape_non_utf8, fingerprint
from ssv2rt.dataset.manifest import (
    CLIP_FIELDS,
    PROBE_FIELDS,
    SCHEMA,
    TRAINING_COLUMNS,
    Manifest,
    is_manifest,
    manifest_paths,
    read_manifest,
    write_manifest,
)
from ssv2rt.dataset.quarantine import COLUMNS, quarantine, quarantine_file
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)


Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""

_FILES_PER_BATCH = 128
_SAVE_EVERY = 10.0
"""Seconds between saves. A killed process loses at most this much work."""
_TIMEOUT, _DECODE_TIMEOUT = 600.0, 3600.0
"""Seconds that a worker process may take for one file, without and with decoding all of it; slow storage counts."""
_PROBER = "ssv2rt.dataset.file_facts:prober"
_MOST_IN_PROCESS = 1000
"""As many files are probed by this process in less time than others take to start."""


def open_manifest(root: Path, *, progress: Progress = lambda done, total: None) -> Manifest:
    """Reads the manifest of a data set, or builds it if it is missing or out of date.

    Clips that were unusable are probed again. The files of usable clips are assumed to be unchanged.

    Args:
        root: a data set in any format, or a manifest.
        progress: called as clips are probed.

    Raises:
        UserError: `root` is not a data set.
    """
    if is_manifest(root):
        manifest = read_manifest(root, TRAINING_COLUMNS)
        if manifest is None:
            raise UserError(
                f"the manifest '{root}' is damaged or of another version; build it again with `ssv2rt index`"
            )
        if not manifest.fingerprint:
            raise UserError(f"the manifest '{root}' is incomplete: its `ssv2rt index` was interrupted; run that again")
        if not manifest.is_current():
            logger.warning(f"the data set in '{manifest.folder}' has changed since '{root}' was made")
        return manifest
    manifest = _read_saved(manifest_paths(root), TRAINING_COLUMNS)
    if manifest and manifest.is_current():
        return manifest if manifest.all_clips_usable() else index(root, trust=True, progress=progress)[0]
    return index(root, progress=progress)[0]


def index(
    root: Path,
    *,
    out: Path | None = None,
    decode: bool = False,
    trust: bool = False,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Manifest, Path]:
    """Probes the clips of a data set, and writes its manifest and quarantine table.

    Args:
        root: a data set in any format.
        out: path of the manifest. The default is beside the data, or in the cache if that is not writable.
        decode: also decode every frame of every clip, which finds damage that the container does not show.
        trust: assume that the files of usable clips are unchanged, without checking their size and mtime.
        workers: number of processes; 0 for one per core.
        progress: called as clips are probed.

    Returns:
        The manifest, and the path that it was written to.

    Raises:
        UserError: `root` is not a data set, or `out` cannot be written.
    """
    for place in (out, quarantine_file(out)) if out else ():
        _check_replaceable(place)
    listing = list_clips(root)
    clip_table = _clip_table(listing)
    saved = _read_saved([out] if out else manifest_paths(root), SCHEMA.names)
    builder = _ManifestBuilder(listing, clip_table, saved.table if saved else SCHEMA.empty_table())
    total, next_save = len(clip_table), time.monotonic() + _SAVE_EVERY
    files = builder.files(decode=decode, trust=trust)
    done = total - len(files)
    try:
        for part in _probe(listing.folder, files, decode, workers or cores()):
            builder.add(part)
            done += len(part)
            progress(done, total)
            if time.monotonic() >= next_save:
                _save(root, out, builder.manifest(complete=False), with_quarantine=False)
                next_save = time.monotonic() + _SAVE_EVERY
    except BaseException:
        _save(root, out, builder.manifest(complete=False))
        raise
    manifest = builder.manifest(complete=True)
    return manifest, _save(root, out, manifest)


class _ManifestBuilder:
    """Assembles a manifest from saved and new probe results."""

    def __init__(self, listing: Listing, clip_table: pa.Table, saved: pa.Table) -> None:
        self._listing, self._clip_table = listing, clip_table
        self._facts = [saved.select(PROBE_FIELDS.names)]
        self._count = len(saved)
        place = {path: at for at, path in enumerate(saved["path"].to_pylist())}
        self._row = np.array([place.get(clip.path, -1) for clip in listing.clips], np.int64)
        """int64 (N,): the row of each clip in the concatenation of `_facts`; -1 if it has not been probed."""

    def files(self, *, decode: bool, trust: bool) -> list[tuple[int, ProbeFile]]:
        """The files that have to be probed, with their clips' indices in the listing."""
        saved = self._facts[0]
        columns = [saved[name].to_pylist() for name in ("bytes", "mtime_ns", "decoded", "status")]
        # An error found by probing is checked again. One found by decoding is kept until the file changes.
        saved_states: list[SavedState] = [
            (size, changed, decoded) if status == OK or decoded else None
            for size, changed, decoded, status in zip(*columns, strict=True)
        ]
        fine = [status == OK for status in columns[3]]
        wanted: list[tuple[int, ProbeFile]] = []
        for row, at in enumerate(self._row):
            before = saved_states[at] if at >= 0 else None
            if not (trust and before and fine[at] and (before[2] or not decode)):
                wanted.append((row, (self._listing.clips[row].path, before)))
        return wanted

    def add(self, part: Sequence[tuple[int, ProbeFacts | None]]) -> None:
        """Adds probe results for clips; None where the saved result is still valid."""
        new = [(row, facts) for row, facts in part if facts is not None]
        self._row[[row for row, _ in new]] = self._count + np.arange(len(new))
        self._count += len(new)
        arrays = [pa.array([facts.get(kind.name) for _, facts in new], kind.type) for kind in PROBE_FIELDS]
        self._facts.append(pa.Table.from_arrays(arrays, schema=PROBE_FIELDS))

    def manifest(self, *, complete: bool) -> Manifest:
        """The manifest of the clips that have been probed so far."""
        rows = np.flatnonzero(self._row >= 0)
        facts = pa.concat_tables(self._facts).combine_chunks().take(self._row[rows])
        table = self._clip_table.take(rows)
        for name in PROBE_FIELDS.names:
            table = table.append_column(PROBE_FIELDS.field(name), facts[name])
        folder = self._listing.folder
        sources = tuple(os.path.relpath(source, folder) for source in self._listing.sources)
        mark = fingerprint(folder, self._listing.sources) if complete else ""
        return Manifest(self._listing.labels, folder, table, sources, mark)


def _clip_table(listing: Listing) -> pa.Table:
    clips = listing.clips
    columns = [[escape_non_utf8(text) for text in (clip.id, clip.path, clip.split)] for clip in clips]
    arrays = [pa.array([row[at] for row in columns], pa.string()) for at in range(3)]
    return pa.Table.from_arrays([*arrays, pa.array([clip.label for clip in clips], pa.int32())], schema=CLIP_FIELDS)


def _probe(
    folder: Path, files: list[tuple[int, ProbeFile]], decode: bool, workers: int
) -> Iterator[list[tuple[int, ProbeFacts | None]]]:
    """Probes files, in worker processes if there are many: reading containers holds the GIL."""
    options: dict[str, Any] = {"folder": folder, "decode": decode, "batch_size": _FILES_PER_BATCH}
    if workers == 1 or len(files) <= (_FILES_PER_BATCH if decode else _MOST_IN_PROCESS):
        yield from prober(**options).run([files])
        return
    settings = [WorkerSettings(_PROBER, options)] * min(workers, -(-len(files) // _FILES_PER_BATCH))
    with _ProbePool(settings, timeout=_DECODE_TIMEOUT if decode else _TIMEOUT) as pool:
        yield from pool.run(files)


class _ProbePool(WorkerPool[ProbeFile, ProbeFacts | None]):
    """A `WorkerPool` for files. One that crashes or hangs its process is unusable."""

    role = "the process that probes videos"

    def failed(self, task: ProbeFile, reason: str, exit_code: int | None) -> ProbeFacts | None:
        logger.warning(f"probing '{task[0]}' ended its process ({reason}, exit code {exit_code}); going on without it")
        return {"status": reason, "suspicion": "", "decoded": False}


def _read_saved(paths: list[Path], columns: Sequence[str]) -> Manifest | None:
    """The manifest of an earlier call: the first that is current, or else the first that is readable."""
    found = [manifest for path in paths if (manifest := read_manifest(path, columns))]
    return next((manifest for manifest in found if manifest.is_current()), found[0] if found else None)


def _save(root: Path, out: Path | None, manifest: Manifest, *, with_quarantine: bool = True) -> Path:
    """Writes a manifest and its quarantine table. Returns the path of the manifest."""
    beside, cached = (out, out) if out else manifest_paths(root)
    try:
        _check_replaceable(beside)
        _check_replaceable(quarantine_file(beside))
        _write(beside, manifest, with_quarantine)
        return beside
    except OSError as error:
        if out:
            raise UserError(f"cannot write '{out}': {error.strerror}; choose another --out") from None
    cached.parent.mkdir(parents=True, exist_ok=True)
    _write(cached, manifest, with_quarantine)
    return cached


def _check_replaceable(path: Path) -> None:
    """Raises UserError if `path` exists and was not written by `ssv2rt index`."""
    if not path.exists():
        return
    with contextlib.suppress(OSError):
        head = path.open("rb").readline() if path.is_file() else b"-"
        if (
            head == b""
            or is_manifest(path)
            or head.decode(errors="replace").strip().replace('"', "") == ",".join(COLUMNS)
        ):
            return
    if f".{path.name}".endswith(".manifest.parquet") and path.is_file() and not _is_parquet(path):
        return  # a damaged manifest
    raise UserError(f"'{path}' exists, and `ssv2rt index` has not written it; move it, or choose another --out")


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def _write(path: Path, manifest: Manifest, with_quarantine: bool) -> None:
    remove_partial_files(path)
    write_manifest(path, manifest)
    if not with_quarantine:
        return
    with atomic_file(quarantine_file(path)) as temporary:
        pyarrow.csv.write_csv(quarantine(manifest), temporary)
