"""Builds the manifest of a data set by probing every clip once, in parallel.

Saved results of unchanged files are reused: a repeated call resumes an interrupted one, and later calls probe only new files.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files
from ssv2rt.core.child_processes import follow_parent
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.file_facts import ProbeFacts, SavedState, file_facts
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

_CLIPS_PER_JOB = 128
_SAVE_EVERY = 10.0
"""Seconds between saves. A killed process loses at most this much work."""
_MIN_CLIPS_FOR_POOL = 1000
"""With fewer clips, probing in this process is faster than starting a process pool."""


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
    current = manifest is not None and manifest.is_current()
    if manifest and current and manifest.all_clips_usable():
        return manifest
    manifest, _, problem = _index(root, trust=current, progress=progress)
    if problem:
        logger.warning(f"{problem}; so the videos are probed again each time")
    return manifest


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
        UserError: `root` is not a data set, or the manifest cannot be written.
    """
    manifest, path, problem = _index(root, out=out, decode=decode, trust=trust, workers=workers, progress=progress)
    if problem:
        raise UserError(f"{problem}; choose {'another --out' if out else 'a file with --out'}")
    return manifest, path


def _index(
    root: Path,
    *,
    out: Path | None = None,
    decode: bool = False,
    trust: bool = False,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Manifest, Path, str]:
    """Like `index`; also returns why the manifest could not be written, or an empty text."""
    for place in (out, quarantine_file(out)) if out else ():
        _check_replaceable(place)
    listing = list_clips(root)
    clip_table = _clip_table(listing)
    saved = _read_saved([out] if out else manifest_paths(root), SCHEMA.names)
    builder = _ManifestBuilder(listing, clip_table, saved.table if saved else SCHEMA.empty_table())
    total, done, next_save = len(clip_table), 0, time.monotonic() + _SAVE_EVERY
    jobs = builder.jobs(decode=decode, trust=trust)
    done = total - sum(len(rows) for rows, _ in jobs)
    try:
        for rows, found in _probe_all(listing.folder, jobs, decode, workers or cores()):
            builder.add(rows, found)
            done += len(rows)
            progress(done, total)
            if time.monotonic() >= next_save:
                _, problem = _save(root, out, builder.manifest(complete=False), with_quarantine=False)
                if problem and out:
                    raise UserError(f"{problem}; choose another --out")
                next_save = time.monotonic() + _SAVE_EVERY
    except BaseException:
        _save(root, out, builder.manifest(complete=False))
        raise
    manifest = builder.manifest(complete=True)
    return manifest, *_save(root, out, manifest)


ProbeJob = tuple[np.ndarray, list[tuple[str, SavedState]]]
"""Indices of clips in the listing, and for each its path and saved state."""


class _ManifestBuilder:
    """Assembles a manifest from saved and new probe results."""

    def __init__(self, listing: Listing, clip_table: pa.Table, saved: pa.Table) -> None:
        self._listing, self._clip_table = listing, clip_table
        self._facts = [saved.select(PROBE_FIELDS.names)]
        self._count = len(saved)
        place = {path: at for at, path in enumerate(saved["path"].to_pylist())}
        self._row = np.array([place.get(clip.path, -1) for clip in listing.clips], np.int64)
        """int64 (N,): the row of each clip in the concatenation of `_facts`; -1 if it has not been probed."""

    def jobs(self, *, decode: bool, trust: bool) -> list[ProbeJob]:
        """The clips that have to be probed, in chunks."""
        saved = self._facts[0]
        columns = [saved[name].to_pylist() for name in ("bytes", "mtime_ns", "decoded", "status")]
        # An error found by probing is checked again. One found by decoding is kept until the file changes.
        saved_states: list[SavedState] = [
            (size, changed, decoded) if status == OK or decoded else None
            for size, changed, decoded, status in zip(*columns, strict=True)
        ]
        fine = [status == OK for status in columns[3]]
        wanted: list[tuple[int, SavedState]] = []
        for row, at in enumerate(self._row):
            before = saved_states[at] if at >= 0 else None
            if not (trust and before and fine[at] and (before[2] or not decode)):
                wanted.append((row, before))
        return [
            (
                np.array([row for row, _ in chunk]),
                [(self._listing.clips[row].path, before) for row, before in chunk],
            )
            for chunk in (wanted[start : start + _CLIPS_PER_JOB] for start in range(0, len(wanted), _CLIPS_PER_JOB))
        ]

    def add(self, rows: np.ndarray, found: Sequence[ProbeFacts | None]) -> None:
        """Adds probe results for clips; None where the saved result is still valid."""
        new = [at for at, facts in enumerate(found) if facts is not None]
        self._row[rows[new]] = self._count + np.arange(len(new))
        self._count += len(new)
        arrays = [pa.array([(found[at] or {}).get(kind.name) for at in new], kind.type) for kind in PROBE_FIELDS]
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


def _probe_all(
    folder: Path, jobs: list[ProbeJob], decode: bool, workers: int
) -> Iterator[tuple[np.ndarray, list[ProbeFacts | None]]]:
    """Probes files in a pool of processes, because reading containers holds the GIL. Isolates files that crash a process."""
    count = sum(len(rows) for rows, _ in jobs)
    if workers == 1 or (count < _MIN_CLIPS_FOR_POOL and not decode) or len(jobs) == 1:
        for rows, files in jobs:
            yield rows, file_facts(folder, files, decode)
        return
    waiting = deque(jobs)
    while waiting:
        running: deque[tuple[ProbeJob, Future[list[ProbeFacts | None]]]] = deque()
        # Spawn, because forking a process with threads may deadlock.
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent
        )
        try:
            while waiting or running:
                while waiting and len(running) < 4 * workers:
                    job = waiting.popleft()
                    running.append((job, pool.submit(file_facts, folder, job[1], decode)))
                (rows, files), future = running[0]
                yield rows, future.result()
                running.popleft()
        except BrokenProcessPool:
            # A file crashed its process, or memory ran out. Retry the first job file by file, and requeue the others.
            waiting.extendleft(job for job, _ in reversed(list(running)[len(running) and 1 :]))
            yield rows, [_probe_isolated(folder, file, decode) for file in files]
        finally:
            pool.shutdown(cancel_futures=True)


def _probe_isolated(folder: Path, file: tuple[str, SavedState], decode: bool) -> ProbeFacts | None:
    """Probes one file in a process of its own, which it may crash."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=follow_parent) as pool:
        try:
            return pool.submit(file_facts, folder, [file], decode).result()[0]
        except BrokenProcessPool:
            return {"status": "decoder crashed", "suspicion": "", "decoded": False}


def _read_saved(paths: list[Path], columns: Sequence[str]) -> Manifest | None:
    """The manifest of an earlier call: the first that is current, or else the first that is readable."""
    found = [manifest for path in paths if (manifest := read_manifest(path, columns))]
    return next((manifest for manifest in found if manifest.is_current()), found[0] if found else None)


def _save(root: Path, out: Path | None, manifest: Manifest, *, with_quarantine: bool = True) -> tuple[Path, str]:
    """Writes a manifest and its quarantine table, in the cache if they cannot be written beside the data.

    Returns:
        The path of the manifest, and why it could not be written, or an empty text.
    """
    places, problem = [out] if out else manifest_paths(root), ""
    for path in places:
        _check_replaceable(path)
        _check_replaceable(quarantine_file(path))
        try:
            if path != places[0]:
                path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, manifest, with_quarantine)
            return path, ""
        except OSError as error:
            problem = f"cannot write '{path}': {error.strerror or error}"
    return places[-1], problem


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
