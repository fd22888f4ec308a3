"""Builds the manifest of a data set by probing every clip once, in parallel.

Saved results of unchanged files are reused: a repeated call resumes an interrupted one, and later calls probe only new files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.locks import LockedError
from ssv2rt.core.worker_pool import WorkerPool, WorkerSettings
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.file_facts import ProbeFacts, ProbeFile, SavedState, prober
from ssv2rt.dataset.listing import Listing, fingerprint, path_to_text
from ssv2rt.dataset.manifest import (
    CLIP_FIELDS,
    PROBE_FIELDS,
    REPACK_SETTINGS,
    SCHEMA,
    TRAINING_COLUMNS,
    VERSION,
    Manifest,
    is_manifest,
    manifest_paths,
    read_manifest,
)
from ssv2rt.dataset.manifest_writer import ManifestWriter
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)


Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""

_FILES_PER_BATCH = 128
_SAVE_EVERY = 10.0
"""Seconds between saves. A killed process loses at most this much work."""
_SECONDS_BETWEEN_TRIES = 0.5
"""How often it is checked whether another process that is indexing has ended."""
_TIMEOUT, _DECODE_TIMEOUT = 600.0, 3600.0
"""Seconds that a worker process may take for one file, without and with decoding all of it; slow storage counts."""
_PROBER = "ssv2rt.dataset.file_facts:prober"
_MOST_IN_PROCESS = 1000
"""As many files are probed by this process in less time than others take to start."""


def open_manifest(
    root: Path,
    *,
    columns: Sequence[str] = TRAINING_COLUMNS,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Reads the manifest of a data set, or builds it if it is missing or out of date.

    Clips that were unusable are probed again. The files of usable clips are assumed to be unchanged. If another process is
    indexing the data set, this waits for it.

    Args:
        root: a data set in any format, or a manifest.
        columns: to be read of a saved manifest, at least `TRAINING_COLUMNS`.
        progress: called as clips are probed.

    Raises:
        UserError: `root` is not a data set.
    """
    if is_manifest(root):
        manifest = read_manifest(root, columns)
        if manifest is None:
            raise UserError(
                f"the manifest '{root}' is damaged or of another version; run `ssv2rt index DATA --out '{root}'` again"
            )
        if manifest.version != VERSION:
            raise UserError(
                f"the manifest '{root}' is of an older version, which counted the frames of some videos wrong; "
                f"run `ssv2rt index DATA --out '{root}'` again"
            )
        if not manifest.fingerprint:
            raise UserError(f"the manifest '{root}' is incomplete: its `ssv2rt index` was interrupted; run that again")
        if not manifest.is_current():
            logger.warning(f"the data set in '{manifest.folder}' has changed since '{root}' was made")
        return manifest
    waited = False
    while True:
        manifest = _read_saved(manifest_paths(root), columns)
        current = manifest is not None and manifest.is_current()
        if manifest and current and (waited or manifest.all_clips_usable()):
            return manifest
        try:
            return index(root, trust=current, must_write=False, progress=progress)[0]
        except LockedError as error:
            if not waited:
                logger.info(f"waiting: {str(error).partition(';')[0]}")
            waited = True
            time.sleep(_SECONDS_BETWEEN_TRIES)


def index(
    root: Path,
    *,
    out: Path | None = None,
    decode: bool = False,
    trust: bool = False,
    workers: int = 0,
    must_write: bool = True,
    progress: Progress = lambda done, total: None,
) -> tuple[Manifest, Path]:
    """Probes the clips of a data set, and writes its manifest and quarantine table.

    Args:
        root: a data set in any format.
        out: path of the manifest. The default is beside the data, or in the cache if that is not writable.
        decode: also decode every frame of every clip, which finds damage that the container does not show.
        trust: assume that the files of usable clips are unchanged, without checking their size and modification time.
        workers: number of processes; 0 for one per core.
        must_write: raise an error where the manifest cannot be written, rather than do without.
        progress: called as clips are probed.

    Returns:
        The manifest, and the path that it was written to.

    Raises:
        LockedError: another process is indexing the data set.
        UserError: `root` is not a data set, or the manifest cannot be written.
    """
    listing = list_clips(root)
    with ManifestWriter.open(root, out, must_write=must_write) as writer:
        return _index(listing, writer, decode=decode, trust=trust, workers=workers or cores(), progress=progress)


def _index(
    listing: Listing, writer: ManifestWriter, *, decode: bool, trust: bool, workers: int, progress: Progress
) -> tuple[Manifest, Path]:
    clip_table = _clip_table(listing)
    saved = _read_saved(writer.paths, SCHEMA.names)
    if saved and saved.version != VERSION:
        logger.info(
            f"the manifest of '{listing.folder}' is of an older version, which counted the frames of some videos wrong; "
            f"all clips are probed again"
        )
    if not saved and (listing.folder / REPACK_SETTINGS).is_file():
        logger.warning(
            f"the manifest that `ssv2rt repack` wrote for '{listing.folder}' is missing or damaged, so crops are chosen in "
            f"the frames of the files, and not in those of the originals; the same `ssv2rt repack` again writes it"
        )
    builder = _ManifestBuilder(listing, clip_table, saved)
    again, files = builder.files_to_decode_again(), builder.files(decode=decode, trust=trust)
    total, next_save = len(clip_table), time.monotonic() + _SAVE_EVERY
    done = total - len(again) - len(files)
    for part in _probe(listing.folder, again, True, workers):
        builder.add(part)
        done += len(part)
    try:
        for part in _probe(listing.folder, files, decode, workers):
            builder.add(part)
            done += len(part)
            progress(done, total)
            if time.monotonic() >= next_save:
                writer.write(builder.manifest(complete=False), with_quarantine=False)
                next_save = time.monotonic() + _SAVE_EVERY
    except UserError:
        raise  # the manifest cannot be written
    except BaseException:
        try:
            writer.write(builder.manifest(complete=False))
        except UserError as error:
            logger.warning(f"what was probed is lost: {error}")
        raise
    manifest = builder.manifest(complete=True)
    return manifest, writer.write(manifest)


class _ManifestBuilder:
    """Assembles a manifest from saved and new probe results."""

    def __init__(self, listing: Listing, clip_table: pa.Table, saved: Manifest | None) -> None:
        self._listing, self._clip_table = listing, clip_table
        table = saved.table if saved else SCHEMA.empty_table()
        place = {path: at for at, path in enumerate(table["path"].to_pylist())}
        row = np.array([place.get(path, -1) for path in clip_table["path"].to_pylist()], np.int64)
        self._old: dict[int, ProbeFacts] = {}
        """What a manifest of an older version has on clips that were decoded, by index in the listing."""
        if saved and saved.version != VERSION:
            known = np.flatnonzero(row >= 0)
            decoded = known[table["decoded"].to_numpy()[row[known]]]
            facts = table.select(_SAME_VIDEO).take(row[decoded]).to_pylist()
            self._old = dict(zip(decoded.tolist(), facts, strict=True))
            table, row = SCHEMA.empty_table(), np.full(len(row), -1, np.int64)
        self._damaged = {row for row, facts in self._old.items() if facts["status"] != OK}
        self._facts = [table.select(PROBE_FIELDS.names)]
        self._count = len(table)
        self._row = row
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
            if row not in self._damaged and not (trust and before and fine[at] and (before[2] or not decode)):
                wanted.append((row, (self._listing.clips[row].path, before)))
        return wanted

    def files_to_decode_again(self) -> list[tuple[int, ProbeFile]]:
        """The files that a manifest of an older version calls unusable because decoding failed.

        Only decoding them again tells whether they are: perhaps their frames were counted wrong.
        """
        return [(row, (self._listing.clips[row].path, None)) for row in sorted(self._damaged)]

    def add(self, part: Sequence[tuple[int, ProbeFacts | None]]) -> None:
        """Adds probe results for clips; None where the saved result is still valid."""
        for row, facts in part:
            before = self._old.get(row)
            if facts and before and all(facts.get(name) == before[name] for name in _SAME_VIDEO):
                facts["decoded"] = True
            if facts and self._row[row] >= 0:
                saved = self._facts[0].slice(self._row[row], 1).select(_COPIED).to_pylist()[0]
                if saved["status"] == facts["status"] == OK and saved["hash"] == facts["hash"]:
                    facts |= {name: saved[name] for name in ("width", "height")}
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


_SAME_VIDEO = ("status", "bytes", "mtime_ns", "frames")
"""Where probing finds these unchanged, an earlier decoding of the file still counts."""


_COPIED = ("status", "hash", "width", "height")
"""A file that is only newer, as in a copy of a data set, keeps its size: that of a repacked clip is the original's, in which
crops are chosen."""


def _clip_table(listing: Listing) -> pa.Table:
    rows = [(path_to_text(clip.id), path_to_text(clip.path), clip.split, clip.label) for clip in listing.clips]
    columns = [[row[at] for row in rows] for at in range(len(CLIP_FIELDS))]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, CLIP_FIELDS, strict=True)], schema=CLIP_FIELDS
    )


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
    """The manifest of an earlier call: the first that is current, or else the first of the newest version."""
    found = [manifest for path in paths if (manifest := read_manifest(path, columns))]
    current = next((manifest for manifest in found if manifest.is_current()), None)
    return current or max(found, key=lambda manifest: manifest.version, default=None)
