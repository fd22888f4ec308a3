"""A scoring run: from inputs to an output file that is there when all of it is."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ssv2rt.console import Progress, say
from ssv2rt.dataset.storage import is_address, is_there
from ssv2rt.errors import UsageError, UserError
from ssv2rt.runs import remove_abandoned
from ssv2rt.scoring.discover import STDIN, Share, discover
from ssv2rt.scoring.journal import PATH, WINDOW, Journal, Row, journal_of, read_rows
from ssv2rt.scoring.ondisk import Ordered
from ssv2rt.scoring.parts import Parts
from ssv2rt.scoring.places import LOCAL, Video
from ssv2rt.scoring.segments import Windows, segments
from ssv2rt.scoring.sinks import open_sink
from ssv2rt.scoring.supervisor import Answer, Supervisor, Task
from ssv2rt.scoring.truth import Tally, Truth
from ssv2rt.scoring.worker import WorkerSettings

if TYPE_CHECKING:
    from ssv2rt.pipelines.trust import Decision

_MAY_BE_GONE = frozenset({"error: missing", "error: unreadable"})
"""What videos look like whose storage has gone away."""
_AT_ONCE = 1000
"""Rows that are taken from the journal into the output at once."""


@dataclass
class Videos:
    """Which videos are scored."""

    inputs: Sequence[str]
    """See `discover`."""
    share: Share | None = None
    """Only these of them."""
    truth: Truth | None = None
    """Only those that annotations name, of which each has a row."""

    def __post_init__(self) -> None:
        self._folders = [path for name in self.inputs if os.path.isdir(path := name.removeprefix(LOCAL))]
        self._addresses = [name for name in self.inputs if is_address(name) and not name.startswith(LOCAL)]

    def __iter__(self) -> Iterator[Video]:
        found = discover(self.inputs)
        for video in self.truth.only(found) if self.truth else found:
            if not self.share or video.name in self.share:
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


class Crew(Protocol):
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
    crew: Crew | None = None,
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
        crew: who scores in the place of workers.
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
        say(f"there is no '{path}' to go on with; beginning")
    try:
        journal = Journal(path, facts, resume=resume and there, windows=output.windows is not None)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another --out") from None
    before = journal.videos
    remove_abandoned(output.path, older_than=-1)  # there is no other writer: it would have the journal
    try:
        parts = Parts(output.path, output.parts, journal) if output.parts else None
        with nullcontext(crew) if crew else Supervisor(workers, timeout=timeout) as scoring:
            _score(videos, journal, scoring, parts)
            trusted = scoring.trusted
        journal.close()
        tally = _write(path, output, videos.truth)
    except OSError as error:
        raise UserError(
            f"stopped after {journal.videos} videos: {error.strerror or error}; make room, and go on with --resume"
        ) from None
    except BaseException:
        if not journal.rows:  # it would only be in the way of the next call
            path.unlink(missing_ok=True)
        else:
            windows = f" and {journal.rows} windows" if output.windows else ""
            say(f"{journal.videos} videos{windows} are scored and kept in '{path}'; go on with --resume")
        raise
    path.unlink()
    return Summary(journal.videos, journal.errors, before, tally.facts() if tally else {}, trusted)


def _score(videos: Videos, journal: Journal, crew: Crew, parts: Parts | None) -> None:
    total = _Count(videos)
    with Progress("scoring", None, unit="videos", begun=journal.videos) as progress:
        for rows in crew.score(_left(videos, journal)):
            if any(row["status"] in _MAY_BE_GONE for _, row in rows):
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
        say(f"{others} videos that an earlier call has scored are not among the inputs any more; their rows are kept")


def _write(path: Path, output: Output, truth: Truth | None) -> Tally | None:
    """The output, of the rows of a journal."""
    rows = read_rows(path)
    if output.sort:
        rows = _sorted(rows)
    if output.windows and output.windows.merge:
        rows = segments(rows)
    tally = Tally(truth) if truth else None
    with open_sink(output.path, output.columns) as sink:
        while part := list(islice(rows, _AT_ONCE)):
            sink.write([tally.add(row) for row in part] if tally else part)
    return tally


def _sorted(rows: Iterator[Row]) -> Iterator[Row]:
    ordered = Ordered()
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
