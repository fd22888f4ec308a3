"""A scoring run: from inputs to an output file that is there when all of it is."""

from __future__ import annotations

import glob
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ssv2rt.core.atomic_files import remove_partial_files
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.progress import Progress
from ssv2rt.scoring.discover import STDIN, Shard, discover
from ssv2rt.scoring.ground_truth import AccuracyCounter, GroundTruth
from ssv2rt.scoring.journal import Journal, journal_of, read_rows
from ssv2rt.scoring.parquet_parts import ParquetParts
from ssv2rt.scoring.row import PATH, WINDOW, Row
from ssv2rt.scoring.segments import Windows, segments
from ssv2rt.scoring.sqlite_store import SortedRows
from ssv2rt.scoring.supervisor import Answer, Supervisor, Task
from ssv2rt.scoring.video_sources import LOCAL, Video
from ssv2rt.scoring.worker import WorkerSettings
from ssv2rt.scoring.writers import open_writer
from ssv2rt.video.storage import is_address, is_there

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


_STORAGE_LOSS_STATUSES = frozenset({"error: missing", "error: unreadable"})
"""What videos look like whose storage has gone away."""
_AT_ONCE = 1000
"""Rows that are taken from the journal into the output at once."""


@dataclass
class Videos:
    """Which videos are scored."""

    inputs: Sequence[str]
    """See `discover`."""
    shard: Shard | None = None
    """Only these of them."""
    ground_truth: GroundTruth | None = None
    """Only those that annotations name, of which each has a row."""

    def __post_init__(self) -> None:
        self._folders = [path for name in self.inputs if os.path.isdir(path := name.removeprefix(LOCAL))]
        self._addresses = [name for name in self.inputs if is_address(name) and not name.startswith(LOCAL)]

    def __iter__(self) -> Iterator[Video]:
        found = discover(self.inputs)
        for video in self.ground_truth.only(found) if self.ground_truth else found:
            if not self.shard or video.name in self.shard:
                yield video

    def check_still_there(self) -> None:
        """Looks whether the folders and addresses that the videos were found at are there and can be read.

        Raises:
            UserError: one is not: its storage has gone away.
        """
        for name in self._folders:
            try:
                with os.scandir(name) as entries:
                    next(entries, None)
            except OSError as error:
                raise UserError(
                    f"'{name}' is gone ({error.strerror}); bring it back, and go on with --resume"
                ) from None
        for address in self._addresses:
            if not glob.has_magic(address) and not is_there(address):
                raise UserError(f"'{address}' cannot be reached any more; see that it can, and go on with --resume")


@dataclass(frozen=True)
class Output:
    """Where rows go, and which."""

    path: Path
    columns: list[str]
    sort: bool = False
    """By path; otherwise in the order in which they were scored."""
    windows: Windows | None = None
    """Whether they are rows of windows."""
    parts: Sequence[str] = ()
    """Columns of Parquet parts beside the file; none without."""


class Executor(Protocol):
    """Who scores."""

    trusted: dict[str, Decision]
    """See `Summary`."""

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]: ...


@dataclass(frozen=True)
class Summary:
    """What scoring did."""

    videos: int
    errors: int
    resumed: int
    """Videos that an earlier call had scored."""
    accuracy: dict[str, float]
    """Percentages, where annotations tell the right labels."""
    trusted: dict[str, Decision]
    """Which kinds of videos DALI was trusted with, where it decodes."""


def score(
    videos: Videos,
    output: Output,
    workers: Sequence[WorkerSettings],
    facts: dict[str, Any],
    *,
    timeout: float,
    executor: Executor | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Scores videos, keeps each row as it comes, and writes the output when all are there.

    Args:
        videos: which.
        output: the file.
        workers: the processes that score.
        facts: what scores depend on; a run that goes on needs the same.
        timeout: seconds that a video may take.
        executor: who scores in the place of workers.
        resume: go on with what an earlier call has left.
        overwrite: forget what an earlier call has left.

    Raises:
        UsageError: an earlier call has left something, and it is not said what to do with it; or nothing, to go on with.
        UserError: the engine cannot be loaded, the output cannot be written. What was scored is kept.
    """
    path = journal_of(output.path)
    there = path.is_file()
    if there and not resume and not overwrite:
        raise UsageError(
            f"an earlier run has left '{path}'; add --resume to go on with it, or --overwrite to begin anew"
        )
    if resume and not there:
        logger.warning(f"there is no '{path}' to go on with; beginning")
    try:
        journal = Journal(path, facts, resume=resume and there, windows=output.windows is not None)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another --out") from None
    before = journal.videos
    remove_partial_files(output.path, older_than=-1)  # there is no other writer: it would have the journal
    try:
        parts = ParquetParts(output.path, output.parts, journal) if output.parts else None
        with nullcontext(executor) if executor else Supervisor(workers, timeout=timeout) as scoring:
            _score(videos, journal, scoring, parts)
            trusted = scoring.trusted
        journal.close()
        tally = _write(path, output, videos.ground_truth)
    except OSError as error:
        raise UserError(
            f"stopped after {journal.videos} videos: {error.strerror or error}; make room, and go on with --resume"
        ) from None
    except BaseException:
        if not journal.rows:  # it would only be in the way of the next call
            path.unlink(missing_ok=True)
        else:
            windows = f" and {journal.rows} windows" if output.windows else ""
            logger.info(f"{journal.videos} videos{windows} are scored and kept in '{path}'; go on with --resume")
        raise
    path.unlink()
    return Summary(journal.videos, journal.errors, before, tally.facts() if tally else {}, trusted)


def _score(videos: Videos, journal: Journal, executor: Executor, parts: ParquetParts | None) -> None:
    total = _Count(videos)
    with Progress("scoring", None, unit="videos", begun=journal.videos) as progress:
        for rows in executor.score(_left(videos, journal)):
            if any(row["status"] in _STORAGE_LOSS_STATUSES for _, row in rows):
                videos.check_still_there()
            journal.write([row for _, row in rows])
            if parts:
                parts.follow()
            windows = {"windows": str(journal.rows)} if journal.windows else {}
            progress.show(journal.videos, total.value, errors=str(journal.errors), **windows)
    if parts:
        parts.end()


def _left(videos: Videos, journal: Journal) -> Iterator[Task]:
    """Videos that have no row yet."""
    begun = others = journal.videos
    for number, video in enumerate(videos):
        if begun and video.name in journal.seen:
            others -= 1
        else:
            yield number, video
    if others:
        logger.warning(
            f"{others} videos that an earlier call has scored are not among the inputs any more; their rows are kept"
        )


def _write(path: Path, output: Output, ground_truth: GroundTruth | None) -> AccuracyCounter | None:
    """The output, of the rows of a journal."""
    rows = read_rows(path)
    if output.sort:
        rows = _sorted(rows)
    if output.windows and output.windows.merge:
        rows = segments(rows)
    tally = AccuracyCounter(ground_truth) if ground_truth else None
    with open_writer(output.path, output.columns) as writer:
        while part := list(islice(rows, _AT_ONCE)):
            writer.write([tally.add(row) for row in part] if tally else part)
    return tally


def _sorted(rows: Iterator[Row]) -> Iterator[Row]:
    ordered = SortedRows()
    for row in rows:
        ordered.add(row[PATH], row.get(WINDOW, 0), row)
    return iter(ordered)


class _Count:
    """Counts the inputs beside the work, so that progress can say what is left."""

    def __init__(self, videos: Videos) -> None:
        self.value: int | None = None
        self._videos = videos
        # What comes from stdin comes once, and to list what is far away once is enough.
        if not any(name == STDIN or is_address(name) for name in videos.inputs):
            threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        try:
            self.value = sum(1 for _ in self._videos)
        except (OSError, UserError):
            self.value = None  # said where the videos are scored
