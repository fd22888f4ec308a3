"""Indexing: every clip of a data set probed once, in parallel, into its manifest.

What is known of a file that has not changed is kept, so an interrupted call is continued by the next, and a later one
looks only at what is new.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ssv2rt.dataset.listing import Listing, fingerprint
from ssv2rt.dataset.look import Facts, Known, look_at
from ssv2rt.dataset.manifest import (
    FACTS,
    NAMING,
    SCHEMA,
    USED,
    Manifest,
    is_manifest,
    places,
    read_manifest,
    write_manifest,
)
from ssv2rt.dataset.quarantine import quarantine, quarantine_file, with_twins
from ssv2rt.dataset.recognise import list_clips
from ssv2rt.dataset.video import OK
from ssv2rt.errors import UserError
from ssv2rt.runs import whole_file

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
        return manifest
    manifest = _saved(places(root), USED)
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
    listing = list_clips(root)
    naming = _naming(listing)
    saved = _saved([out] if out else places(root), SCHEMA.names)
    work = _Work(listing, naming, saved.table if saved else SCHEMA.empty_table())
    total, done, next_save = len(naming), 0, time.monotonic() + _SAVE_EVERY
    jobs = work.jobs(decode=decode, trust=trust)
    done = total - sum(len(rows) for rows, _ in jobs)
    try:
        for rows, found in _look_at_all(listing.folder, jobs, decode, workers or os.cpu_count() or 1):
            work.add(rows, found)
            done += len(rows)
            progress(done, total)
            if time.monotonic() >= next_save:
                _save(root, out, work.manifest(complete=False))
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
        known: list[Known] = [
            (size, changed, decoded) if status == OK else None
            for size, changed, decoded, status in zip(*columns, strict=True)
        ]
        wanted: list[tuple[int, Known]] = []
        for row, at in enumerate(self._row):
            before = known[at] if at >= 0 else None
            if not (trust and before and (before[2] or not decode)):
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
        if complete:
            table = with_twins(table)
        folder = self._listing.folder
        sources = tuple(os.path.relpath(source, folder) for source in self._listing.sources)
        mark = fingerprint(folder, self._listing.sources) if complete else ""
        return Manifest(self._listing.labels, folder, table, sources, mark)


def _naming(listing: Listing) -> pa.Table:
    clips = listing.clips
    try:
        columns = [[clip.id for clip in clips], [clip.path for clip in clips], [clip.split for clip in clips]]
        return pa.Table.from_arrays(
            [pa.array(column) for column in columns] + [pa.array([c.label for c in clips], pa.int32())], schema=NAMING
        )
    except UnicodeEncodeError as error:
        raise UserError(f"a file name in '{listing.folder}' is no text: {error.object!r}; rename it") from None


def _look_at_all(
    folder: Path, jobs: list[Job], decode: bool, workers: int
) -> Iterator[tuple[np.ndarray, list[Facts | None]]]:
    """Looks at files in processes of their own, since reading containers holds the interpreter's lock."""
    count = sum(len(rows) for rows, _ in jobs)
    if workers == 1 or (count < _ALONE and not decode) or len(jobs) == 1:
        for rows, files in jobs:
            yield rows, look_at(folder, files, decode)
        return
    # Fresh processes: forking one that runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        waiting = iter(jobs)
        running = [(job[0], pool.submit(look_at, folder, job[1], decode)) for job in islice(waiting, 4 * workers)]
        try:
            while running:
                rows, future = running.pop(0)
                yield rows, future.result()
                if job := next(waiting, None):
                    running.append((job[0], pool.submit(look_at, folder, job[1], decode)))
        finally:
            pool.shutdown(cancel_futures=True)


def _saved(paths: list[Path], columns: Sequence[str]) -> Manifest | None:
    """What an earlier call has left."""
    found = (read_manifest(path, columns) for path in paths)
    return next((manifest for manifest in found if manifest), None)


def _save(root: Path, out: Path | None, manifest: Manifest) -> Path:
    """Writes a manifest, and says where."""
    beside, cached = (out, out) if out else places(root)
    try:
        _write(beside, manifest)
        return beside
    except OSError as error:
        if out:
            raise UserError(f"cannot write '{out}': {error.strerror}; choose another --out") from None
    cached.parent.mkdir(parents=True, exist_ok=True)
    _write(cached, manifest)
    return cached


def _write(path: Path, manifest: Manifest) -> None:
    write_manifest(path, manifest)
    with whole_file(quarantine_file(path)) as temporary:
        pyarrow.csv.write_csv(quarantine(manifest), temporary)
