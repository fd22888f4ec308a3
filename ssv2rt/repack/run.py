"""Repacks a data set: every clip once, in parallel, so that decoding it in training takes less time.

A call that was interrupted, also by `kill -9`, is continued by the same call. Shards may run on several machines with a common
folder; the last of them to end writes the annotations and the manifest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssv2rt.core.atomic_files import remove_tree
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.locks import LockedError, exclusive
from ssv2rt.core.progress import Progress
from ssv2rt.core.quantities import bytes_in_words, time_in_words
from ssv2rt.core.worker_pool import WorkerPool, WorkerSettings
from ssv2rt.dataset.file_facts import ProbeFacts
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.repack.data_set import write_data_set
from ssv2rt.repack.encode import Task, frames_at_rate
from ssv2rt.repack.records import (
    Record,
    claim,
    claimed,
    describe,
    read_records,
    settings_file,
    work_folder,
    write_records,
)
from ssv2rt.repack.settings import Settings, clip_name
from ssv2rt.repack.source import SourceClips
from ssv2rt.scoring.discover import Shard
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)

_TIMEOUT = 3600.0
"""Seconds for one clip, which may be an hour of video."""
_FIRST = 8
"""Clips from which bytes and time of all are estimated, for each process."""


@dataclass(frozen=True)
class Repacked:
    """What a call has done."""

    clips: int
    """Clips of the data set that are repacked now, by whatever call."""
    bytes: int
    """Of their files."""
    source_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)
    """By reason."""
    missing: int = 0
    """Clips that other shards have not done yet. Until they have, there are no annotations."""


def settle(out: Path, name: Path, choose: Callable[[], Settings]) -> Settings:
    """The settings that a folder is being filled with. If it is new, they are chosen now; other calls wait for that.

    Raises:
        UserError: it holds something else.
    """
    if (found := claimed(out, name)) is None:
        with exclusive(settings_file(out), "choosing settings", wait=True):
            if (found := claimed(out, name)) is None:
                found = choose()
                with os_errors_as_user_errors(f"cannot write to '{out}'"):
                    claim(out, name, found)
    return found


def repack(
    source: Manifest, name: Path, out: Path, settings: Settings, *, shard: Shard | None = None, workers: int = 0
) -> Repacked:
    """Repacks the clips of a data set, or one shard of them, and continues what was interrupted.

    Args:
        source: the data set, from `source.open_source`.
        name: what it is called, see `source.source_name`.
        out: a new or empty folder, or that of an earlier call with the same source and settings.
        settings: how clips are coded.
        shard: the share of the clips to repack; all by default.
        workers: number of processes; 0 for one per core.

    Raises:
        UserError: `out` holds something else, does not fit the disk or cannot be written; or another process is at it.
    """
    shard, workers = shard or Shard(1, 1), workers or cores()
    if (found := settle(out, name, lambda: settings)) != settings:
        raise UserError(f"'{out}' was begun with other settings, {found}; choose another folder, or remove it")
    part = work_folder(out) / f"{shard.index}-of-{shard.count}"
    fix = "mend that, and run the same command to go on"
    with exclusive(part, "repacking"), os_errors_as_user_errors(f"cannot write to '{out}'", fix):
        for unfinished in part.glob("*.partial"):
            unfinished.unlink()
        part.mkdir(exist_ok=True)
        (out / "videos").mkdir(exist_ok=True)
        work = _Work(source, out, settings)
        mine = [row for row in work.usable() if work.clips.ids[row] in shard]
        todo = [row for row in mine if not work.is_done(row)]
        with (part / "journal").open("a", encoding="utf-8") as journal:
            journal.write("\n")  # ends a line that was torn
            _repack(work, todo, part, journal, workers, done=len(mine) - len(todo))
    with (
        exclusive(settings_file(out), "finishing", wait=True),
        os_errors_as_user_errors(f"cannot write to '{out}'", fix),
    ):
        return _finish(work, name)


class _Work:
    """The clips of a data set, and what is known of their repacked files."""

    def __init__(self, source: Manifest, out: Path, settings: Settings) -> None:
        self.source, self.out, self.settings = source, out, settings
        self.clips = SourceClips(source)
        self.records = read_records(out)
        with os.scandir(out / "videos") as entries:
            self._there = {entry.name: entry.stat().st_size for entry in entries}

    def usable(self) -> list[int]:
        """Rows of the clips that can be decoded, as far as probing tells."""
        return [row for row, status in enumerate(self.clips.statuses) if status == OK]

    def origin(self, row: int) -> Record:
        """The source of a clip, and the new file relative to OUT."""
        name = clip_name(self.clips.ids[row]) + self.settings.coding.suffix
        return self.clips.origin(row) | {"path": f"videos/{name}"}

    def is_done(self, row: int) -> bool:
        """Whether the file is there, complete, and of this source."""
        record = self.records.get(self.clips.ids[row])
        if record is None or record["status"] != OK:
            return False
        origin = self.origin(row)
        size = self._there.get(Path(origin["path"]).name)
        return record.get("bytes") == size and all(record.get(name) == value for name, value in origin.items())

    def task(self, row: int) -> Task:
        return self.clips.task(row, self.out / self.origin(row)["path"])

    def has_changed(self, row: int) -> bool:
        """Whether the source of a clip is another file than the one that was indexed."""
        origin = self.clips.origin(row)
        with contextlib.suppress(OSError):
            status = self.task(row).source.stat()
            return (status.st_size, status.st_mtime_ns) != (origin["source_bytes"], origin["source_mtime_ns"])
        return False

    def pixels(self, row: int) -> float:
        """Pixels of the coded frames of a clip, to which its bytes are about in proportion."""
        meta = self.clips.meta(row)
        chosen = frames_at_rate(meta, self.settings.fps)
        wide, high = self.settings.frame_size(meta.width, meta.height)
        return float(wide * high * (meta.frames if chosen is None else len(chosen)))


class RepackPool(WorkerPool[Task, ProbeFacts]):
    """A `WorkerPool` for clips. One that crashes or hangs its process is left out."""

    role = "the process that repacks clips"

    def failed(self, task: Task, reason: str, exit_code: int | None) -> ProbeFacts:
        logger.warning(f"'{task.source}' ended its process ({reason}, exit code {exit_code}); going on without it")
        return {"status": reason, "suspicion": "", "decoded": False}


def pool(work: Path, settings: Settings, workers: int) -> RepackPool:
    """Processes that repack clips."""
    made = WorkerSettings("ssv2rt.repack.encode:repacker", {"work": work, "settings": settings})
    return RepackPool([made] * workers, timeout=_TIMEOUT)


def _repack(work: _Work, todo: Sequence[int], part: Path, journal: Any, workers: int, *, done: int) -> None:
    """Repacks the clips of some rows, and notes each in the journal."""
    if not todo:
        return
    order = _sample_first(todo, _FIRST * workers)
    estimate = _Estimate(work, order, min(_FIRST * workers, len(todo)), workers)
    estimate.check_room(0)
    tasks = ((row, work.task(row)) for row in order)
    changed = 0
    with (
        Progress(f"repacking into {work.out}", done + len(todo), already_done=done) as progress,
        pool(part, work.settings, min(workers, len(todo))) as processes,
    ):
        for results in processes.run(tasks):
            for row, facts in results:
                times = facts.get("times")
                record = work.origin(row) | facts | ({} if times is None else {"times": times.tolist()})
                journal.write(json.dumps(record) + "\n")
                journal.flush()
                estimate.add(row, facts)
                progress.add(1)
                changed += facts["status"] != OK and work.has_changed(row)
    if changed:
        logger.warning(
            f"{changed} clips could not be repacked, and their files have changed since they were indexed; run `ssv2rt index` "
            f"on the data set, and this command again"
        )


def _sample_first(rows: Sequence[int], count: int) -> list[int]:
    """The rows with some first that are spread evenly over them."""
    picked = set(rows[:: max(1, len(rows) // count)][:count])
    return [*sorted(picked), *(row for row in rows if row not in picked)]


class _Estimate:
    """Bytes and time of the whole, from the first clips."""

    def __init__(self, work: _Work, rows: Sequence[int], sample: int, workers: int) -> None:
        self._work, self._sample, self._workers = work, sample, workers
        self._clips, self._done, self._bytes = len(rows), 0, 0
        self._all, self._measured = sum(map(work.pixels, rows)), 0.0
        self._start = time.monotonic()

    def add(self, row: int, facts: ProbeFacts) -> None:
        if self._done >= self._sample:
            return
        if self._done == 0:
            self._start = time.monotonic()  # when processes have started
        self._done += 1
        if facts["status"] == OK:
            self._bytes += int(facts["bytes"])  # type: ignore[call-overload]
            self._measured += self._work.pixels(row)
        if self._done == self._sample and self._measured:
            total = round(self._bytes * self._all / self._measured)
            seconds = (time.monotonic() - self._start) * (self._clips - 1) / max(1, self._done - 1)
            free = shutil.disk_usage(self._work.out).free + self._bytes
            logger.info(
                f"{self._clips:,} clips take about {bytes_in_words(total)} and {time_in_words(seconds)} with "
                f"{self._workers} processes; {bytes_in_words(free)} are free in '{self._work.out}'"
            )
            self.check_room(total)

    def check_room(self, total: int) -> None:
        """Raises UserError unless so many bytes fit the disk."""
        free = shutil.disk_usage(self._work.out).free + self._bytes
        if total > free or free < _LEAST_ROOM:
            raise UserError(
                f"the repacked clips need about {bytes_in_words(max(total, _LEAST_ROOM))}, and {bytes_in_words(free)} are "
                f"free in '{self._work.out}'; make room, or lower --short-side or raise --quality in a new folder"
            )


_LEAST_ROOM = 10_000_000
"""Bytes."""


def _finish(work: _Work, name: Path) -> Repacked:
    """Writes everything beside the videos if all clips are done, by whatever shards."""
    work = _Work(work.source, work.out, work.settings)
    records: dict[str, Record] = {}
    missing = 0
    for row, clip in enumerate(work.clips.ids):
        record, status = work.records.get(clip), work.clips.statuses[row]
        if status != OK:
            records[clip] = work.origin(row) | {"status": status, "suspicion": "", "decoded": False}
        elif record is not None and (record["status"] != OK or work.is_done(row)):
            records[clip] = record
        else:
            missing += 1
    good = [record for record in records.values() if record["status"] == OK]
    source_bytes = sum(record["source_bytes"] or 0 for record in good)
    done = Repacked(len(good), sum(record["bytes"] for record in good), source_bytes, missing=missing)
    if missing:
        return done
    facts = describe(name, work.settings) | {"folder": str(work.source.folder.resolve())}
    _, left_out = write_data_set(work.out, work.source, records)
    write_records(work.out, records.values(), facts)
    _remove_work(work.out)
    return Repacked(done.clips, done.bytes, done.source_bytes, left_out)


def _remove_work(out: Path) -> None:
    """Removes journals, which repack.parquet replaces, except of shards that another process is repacking."""
    for part in work_folder(out).glob("*-of-*"):
        with contextlib.suppress(LockedError, UserError), exclusive(part, "cleaning"):
            remove_tree(part)
    with contextlib.suppress(OSError):
        work_folder(out).rmdir()
