"""Runs scoring from the inputs to the output file, which appears only once it is complete."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ssv2rt.core.atomic_files import remove_partial_files
from ssv2rt.core.errors import UserError
from ssv2rt.core.progress import Progress
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.scoring.discover import STDIN, Shard, discover
from ssv2rt.scoring.ground_truth import AccuracyCounter, GroundTruth
from ssv2rt.scoring.journal import Journal, journal_path, read_rows
from ssv2rt.scoring.metadata import Metadata, metadata_file
from ssv2rt.scoring.parquet_parts import ParquetParts
from ssv2rt.scoring.row import PATH, WINDOW, Row
from ssv2rt.scoring.segments import Windows, segments
from ssv2rt.scoring.sqlite_store import SortedRows
from ssv2rt.scoring.storage_watch import StorageWatch
from ssv2rt.scoring.supervisor import Answer, Supervisor, Task
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.writers import check_output, open_writer
from ssv2rt.video.container import OK
from ssv2rt.video.storage import is_address

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


_ROWS_IN_MEMORY = 1000
_NAMES_PER_REASON = 3
"""Names in the summary of errors."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class InputVideos:
    """The videos to score."""

    inputs: Sequence[str]
    """See `discover`. May be empty if `ground_truth` names the clips."""
    shard: Shard | None = None
    """If given, only the videos of this shard."""
    ground_truth: GroundTruth | None = None
    """If given, only the clips that the annotations name. Each of them gets a row, even if its video is missing."""

    def __iter__(self) -> Iterator[Video]:
        found = discover(self.inputs) if self.inputs else iter(())
        for video in self.ground_truth.only(found) if self.ground_truth else found:
            if not self.shard or video.name in self.shard:
                yield video


@dataclass(frozen=True)
class Output:
    """The output file and what it contains."""

    path: Path
    columns: list[str]
    sort: bool = False
    """Whether rows are sorted by path. Otherwise they are in the order in which they were scored."""
    windows: Windows | None = None
    """If given, rows are sliding windows."""
    metadata: Metadata | None = None
    """See `ssv2rt.scoring.metadata`."""
    parts: Sequence[str] = ()
    """Columns of Parquet parts beside the file; no parts are written if empty."""


class Executor(Protocol):
    """Scores videos: a `Supervisor` or a `RayBackend`."""

    trusted: dict[str, Decision]
    """See `Summary`."""

    def score(self, videos: Iterator[Task]) -> Iterator[Answer]: ...


@dataclass
class ErrorReason:
    """Error rows with the same reason."""

    rows: int = 0
    first: list[str] = field(default_factory=list)
    """The first names among them."""


@dataclass(frozen=True)
class Summary:
    """The result of a scoring run."""

    videos: int
    errors: int
    resumed: int
    """Videos that were already in the journal."""
    accuracy: dict[str, float]
    """Percentages; empty without ground truth."""
    classes: list[tuple[str, int, float]]
    """Label, number of clips and accuracy in percent of each class, the worst first; empty without ground truth."""
    reasons: dict[str, ErrorReason]
    """Error rows by reason, the most frequent first."""
    trusted: dict[str, Decision]
    """Which kinds of videos DALI was trusted to decode."""


def score(
    videos: InputVideos,
    output: Output,
    workers: Sequence[WorkerSettings],
    facts: dict[str, Any],
    *,
    timeout: float,
    executor: Executor | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Scores videos, journals each row as it arrives, and writes the output once all are there.

    Args:
        videos: the videos to score.
        output: the output file.
        workers: settings of the worker processes.
        facts: everything that scores depend on. A resumed run must have the same.
        timeout: seconds without an answer after which a worker is restarted.
        executor: scores the videos instead of workers on this machine.
        resume: continue from an existing journal.
        overwrite: discard an existing journal.

    Raises:
        UsageError: there is a journal or an output, and neither `resume` nor `overwrite` is set.
        UserError: the engine cannot be loaded, or the output cannot be written. The rows scored so far are kept.
    """
    path = journal_path(output.path)
    if resume and not path.is_file():
        logger.warning(f"there is no '{path}' to resume from; starting a new run")
    try:
        journal = Journal(path, facts, resume=resume, overwrite=overwrite, windows=output.windows is not None)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another --out") from None
    with contextlib.closing(journal):
        before = journal.videos
        try:
            if not (overwrite or journal.rows):
                check_output(output.path, overwrite=False)  # another call may have made it since this one began
            for file in (output.path, metadata_file(output.path)):
                remove_partial_files(file, older_than=-1)  # the lock on the journal excludes other writers
            parts = ParquetParts(output.path, output.parts, journal, output.metadata) if output.parts else None
            with nullcontext(executor) if executor else Supervisor(workers, timeout=timeout) as scoring:
                _score(videos, journal, scoring, parts)
                trusted = scoring.trusted
            journal.sync()
            accuracy, reasons = _write(path, output, videos.ground_truth)
        except OSError as error:
            remedy = "make room" if error.errno in _NO_ROOM else "see that all is in its place"
            raise UserError(
                f"stopped after {journal.videos} videos: {error.strerror or error}; {remedy}, and go on with --resume"
            ) from None
        except BaseException:
            if not journal.rows:  # an empty journal would only make the next run fail
                journal.remove()
            else:
                windows = f" and {journal.rows} windows" if output.windows else ""
                logger.warning(f"{journal.videos} videos{windows} are scored and kept in '{path}'; go on with --resume")
            raise
        journal.remove()
    return Summary(
        journal.videos,
        journal.errors,
        before,
        accuracy.facts() if accuracy else {},
        accuracy.classes() if accuracy else [],
        reasons,
        trusted,
    )


def _score(videos: InputVideos, journal: Journal, executor: Executor, parts: ParquetParts | None) -> None:
    total, storage = _BackgroundCount(videos), StorageWatch(videos.inputs)
    with Progress("scoring", None, unit="videos", already_done=journal.videos) as progress:
        for rows in executor.score(_unscored(videos, journal, storage)):
            storage.check(row for _, row in rows)
            journal.write([row for _, row in rows])
            if parts:
                parts.follow()
            windows = {"windows": str(journal.rows)} if journal.windows else {}
            progress.show(journal.videos, total.value, errors=str(journal.errors), **windows)
    if parts:
        parts.end()


def _unscored(videos: InputVideos, journal: Journal, storage: StorageWatch) -> Iterator[Task]:
    """Yields the videos that are not in the journal."""
    resumed = others = journal.videos
    for number, video in enumerate(storage.noting(videos)):
        if resumed and video.name in journal.seen:
            others -= 1
        else:
            yield number, video
    if others:
        logger.warning(
            f"{others} videos that an earlier call has scored are not among the inputs any more; their rows are kept"
        )


def _write(
    path: Path, output: Output, ground_truth: GroundTruth | None
) -> tuple[AccuracyCounter | None, dict[str, ErrorReason]]:
    """Writes the output from the rows of the journal. Returns the accuracy, and error rows by reason."""
    rows = read_rows(path)
    if output.sort:
        rows = _sorted(rows)
    if output.windows and output.windows.merge:
        rows = segments(rows)
    accuracy = AccuracyCounter(ground_truth) if ground_truth else None
    reasons: dict[str, ErrorReason] = {}
    with open_writer(output.path, output.columns, output.metadata) as writer:
        while part := list(islice(rows, _ROWS_IN_MEMORY)):
            writer.write([accuracy.add(row) for row in part] if accuracy else part)
            for row in part:
                if row["status"] != OK:
                    found = reasons.setdefault(row["status"].removeprefix("error: "), ErrorReason())
                    found.rows += 1
                    if len(found.first) < _NAMES_PER_REASON and row["video"] not in found.first:
                        found.first.append(row["video"])
    return accuracy, dict(sorted(reasons.items(), key=lambda item: -item[1].rows))


def _sorted(rows: Iterator[Row]) -> Iterator[Row]:
    ordered = SortedRows()
    for row in rows:
        ordered.add(row[PATH], row.get(WINDOW, 0), row)
    return iter(ordered)


class _BackgroundCount:
    """Counts the videos in a background thread, so that the progress bar knows the total."""

    def __init__(self, videos: InputVideos) -> None:
        self.value: int | None = None
        self._videos = videos
        # Stdin can be read only once, and listing remote storage twice would be slow.
        if not any(name == STDIN or is_address(name) for name in videos.inputs):
            threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        try:
            self.value = sum(1 for _ in self._videos)
        except (OSError, UserError):
            self.value = None  # the scoring thread reports it
