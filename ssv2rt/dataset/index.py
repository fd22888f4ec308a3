"""Indexing: every clip of a data set probed once, in parallel, into its manifest.

What is known of a file that has not changed is kept, so an interrupted call is continued by the next, and a later one
looks only at what is new.
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
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.file_facts import Facts, Known, file_facts
from ssv2rt.dataset.listing import Listing, as_text, fingerprint
from ssv2rt.dataset.manifest import (
    FACTS,
    NAMING,
    SCHEMA,
    USED,
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
"""Called with (rows done, rows in all)."""

_CHUNK = 128
_SAVE_EVERY = 10.0
"""Seconds: no more than this is lost when the power goes."""
_ALONE = 1000
"""Clips that are probed sooner by this process than by others that have to be started."""


def open_manifest(root: Path, *, progress: Progress = lambda done, total: None) -> Manifest:
    """The manifest of a data set: read if it is there and the data set is as it was, made or completed if not.

    Clips that could not be used when it was made are looked at again; the files of the others are taken to be what they
    were.

    Args:
        root: a data set of any kind, or a manifest.
        progress: told how far probing is.

    Raises:
        UserError: `root` is no data set.
    """
    if is_manifest(root):
        manifest = read_manifest(root, USED)
        if manifest is None:
            raise UserError(f"the manifest '{root}' is damaged or of another version; make it anew with `ssv2rt index`")
        if not manifest.fingerprint:
            raise UserError(f"the manifest '{root}' is incomplete: its `ssv2rt index` was interrupted; run that again")
        if not manifest.is_current():
            logger.warning(f"the data set in '{manifest.folder}' has changed since '{root}' was made")
        return manifest
    manifest = _saved(manifest_paths(root), USED)
    if manifest and manifest.is_current():
        return manifest if manifest.is_usable() else index(root, trust=True, progress=progress)[0]
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
    """Looks at every clip of a data set, and writes its manifest and the table of what is wrong with it.

    Args:
        root: a data set of any kind.
        out: where the manifest is written; beside the data by default, or in the cache if that cannot be written to.
        decode: also decode every frame of every clip, which finds damage that the container does not show.
        trust: take files that were all right to be unchanged, without a look at them.
        workers: processes; 0 for one a core.
        progress: told how far it is.

    Returns:
        The manifest, and where it was written.

    Raises:
        UserError: `root` is no data set, or `out` cannot be written.
    """
    for place in (out, quarantine_file(out)) if out else ():
        _check_ours(place)
    listing = list_clips(root)
    naming = _naming(listing)
    saved = _saved([out] if out else manifest_paths(root), SCHEMA.names)
    work = _Work(listing, naming, saved.table if saved else SCHEMA.empty_table())
    total, done, next_save = len(naming), 0, time.monotonic() + _SAVE_EVERY
    jobs = work.jobs(decode=decode, trust=trust)
    done = total - sum(len(rows) for rows, _ in jobs)
    try:
        for rows, found in _look_at_all(listing.folder, jobs, decode, workers or cores()):
            work.add(rows, found)
            done += len(rows)
            progress(done, total)
            if time.monotonic() >= next_save:
                _save(root, out, work.manifest(complete=False), with_quarantine=False)
                next_save = time.monotonic() + _SAVE_EVERY
    except BaseException:
        _save(root, out, work.manifest(complete=False))
        raise
    manifest = work.manifest(complete=True)
    return manifest, _save(root, out, manifest)


Job = tuple[np.ndarray, list[tuple[str, Known]]]
"""Row numbers, and for each the path and what is known of it."""


class _Work:
    """The manifest while it is made: which facts belong to which clip."""

    def __init__(self, listing: Listing, naming: pa.Table, saved: pa.Table) -> None:
        self._listing, self._naming = listing, naming
        self._facts = [saved.select(FACTS.names)]
        self._count = len(saved)
        place = {path: at for at, path in enumerate(saved["path"].to_pylist())}
        self._row = np.array([place.get(clip.path, -1) for clip in listing.clips], np.int64)
        """(N,): in which row of `_facts` each clip's facts are; -1 if nothing is known."""

    def jobs(self, *, decode: bool, trust: bool) -> list[Job]:
        """What has to be looked at, in chunks."""
        saved = self._facts[0]
        columns = [saved[name].to_pylist() for name in ("bytes", "mtime_ns", "decoded", "status")]
        # What is wrong by the look of it is looked at again; what decoding has found holds until the file changes.
        known: list[Known] = [
            (size, changed, decoded) if status == OK or decoded else None
            for size, changed, decoded, status in zip(*columns, strict=True)
        ]
        fine = [status == OK for status in columns[3]]
        wanted: list[tuple[int, Known]] = []
        for row, at in enumerate(self._row):
            before = known[at] if at >= 0 else None
            if not (trust and before and fine[at] and (before[2] or not decode)):
                wanted.append((row, before))
        return [
            (
                np.array([row for row, _ in chunk]),
                [(self._listing.clips[row].path, before) for row, before in chunk],
            )
            for chunk in (wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK))
        ]

    def add(self, rows: np.ndarray, found: Sequence[Facts | None]) -> None:
        """Takes what was found for some clips; None where what was known still holds."""
        new = [at for at, facts in enumerate(found) if facts is not None]
        self._row[rows[new]] = self._count + np.arange(len(new))
        self._count += len(new)
        arrays = [pa.array([(found[at] or {}).get(kind.name) for at in new], kind.type) for kind in FACTS]
        self._facts.append(pa.Table.from_arrays(arrays, schema=FACTS))

    def manifest(self, *, complete: bool) -> Manifest:
        """What is known so far."""
        rows = np.flatnonzero(self._row >= 0)
        facts = pa.concat_tables(self._facts).combine_chunks().take(self._row[rows])
        table = self._naming.take(rows)
        for name in FACTS.names:
            table = table.append_column(FACTS.field(name), facts[name])
        folder = self._listing.folder
        sources = tuple(os.path.relpath(source, folder) for source in self._listing.sources)
        mark = fingerprint(folder, self._listing.sources) if complete else ""
        return Manifest(self._listing.labels, folder, table, sources, mark)


def _naming(listing: Listing) -> pa.Table:
    clips = listing.clips
    columns = [[as_text(text) for text in (clip.id, clip.path, clip.split)] for clip in clips]
    arrays = [pa.array([row[at] for row in columns], pa.string()) for at in range(3)]
    return pa.Table.from_arrays([*arrays, pa.array([clip.label for clip in clips], pa.int32())], schema=NAMING)


def _look_at_all(
    folder: Path, jobs: list[Job], decode: bool, workers: int
) -> Iterator[tuple[np.ndarray, list[Facts | None]]]:
    """Looks at files in processes of their own, since reading containers holds the interpreter's lock."""
    count = sum(len(rows) for rows, _ in jobs)
    if workers == 1 or (count < _ALONE and not decode) or len(jobs) == 1:
        for rows, files in jobs:
            yield rows, file_facts(folder, files, decode)
        return
    waiting = deque(jobs)
    while waiting:
        running: deque[tuple[Job, Future[list[Facts | None]]]] = deque()
        # Fresh processes: forking one that runs threads may hang.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
        try:
            while waiting or running:
                while waiting and len(running) < 4 * workers:
                    job = waiting.popleft()
                    running.append((job, pool.submit(file_facts, folder, job[1], decode)))
                (rows, files), future = running[0]
                yield rows, future.result()
                running.popleft()
        except BrokenProcessPool:
            # A file has killed its process, or memory ran out. Those under way are looked at one by one.
            waiting.extendleft(job for job, _ in reversed(list(running)[len(running) and 1 :]))
            yield rows, [_look_alone(folder, file, decode) for file in files]
        finally:
            pool.shutdown(cancel_futures=True)


def _look_alone(folder: Path, file: tuple[str, Known], decode: bool) -> Facts | None:
    """One file, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(file_facts, folder, [file], decode).result()[0]
        except BrokenProcessPool:
            return {"status": "decoder crashed", "suspicion": "", "decoded": False}


def _saved(paths: list[Path], columns: Sequence[str]) -> Manifest | None:
    """What an earlier call has left: of several manifests one that is current, if there is one."""
    found = [manifest for path in paths if (manifest := read_manifest(path, columns))]
    return next((manifest for manifest in found if manifest.is_current()), found[0] if found else None)


def _save(root: Path, out: Path | None, manifest: Manifest, *, with_quarantine: bool = True) -> Path:
    """Writes a manifest and the table of what is wrong, and says where."""
    beside, cached = (out, out) if out else manifest_paths(root)
    try:
        _check_ours(beside)
        _check_ours(quarantine_file(beside))
        _write(beside, manifest, with_quarantine)
        return beside
    except OSError as error:
        if out:
            raise UserError(f"cannot write '{out}': {error.strerror}; choose another --out") from None
    cached.parent.mkdir(parents=True, exist_ok=True)
    _write(cached, manifest, with_quarantine)
    return cached


def _check_ours(path: Path) -> None:
    """Raises UserError if writing to `path` would replace what no `ssv2rt index` has written."""
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
        return  # a manifest that is damaged
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
