"""A scoring run: from inputs to an output file that is there when all of it is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ssv2rt.console import Progress, say
from ssv2rt.errors import UsageError, UserError
from ssv2rt.scoring.discover import STDIN, Share, discover
from ssv2rt.scoring.journal import PATH, Journal, Row, journal_of, read_rows
from ssv2rt.scoring.sinks import open_sink
from ssv2rt.scoring.supervisor import Supervisor, Task
from ssv2rt.scoring.worker import WorkerSettings

_AT_ONCE = 1000
"""Rows that are taken from the journal into the output at once."""


@dataclass(frozen=True)
class Output:
    """Where rows go, and which."""

    path: Path
    columns: list[str]
    sort: bool = False
    """By path; otherwise in the order in which they were scored."""


@dataclass(frozen=True)
class Summary:
    """What scoring did."""

    videos: int
    errors: int
    resumed: int
    """Videos that an earlier call had scored."""


def score(
    inputs: Sequence[str],
    output: Output,
    workers: Sequence[WorkerSettings],
    facts: dict[str, Any],
    *,
    timeout: float,
    share: Share | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Scores videos, keeps each row as it comes, and writes the output when all are there.

    Args:
        inputs: see `discover`.
        output: the file.
        workers: the processes that score.
        facts: what scores depend on; a run that goes on needs the same.
        timeout: seconds that a video may take.
        share: of the videos; all of them by default.
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
        journal = Journal(path, facts, resume=resume and there)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose another --out") from None
    before = journal.rows
    try:
        _score(inputs, share, journal, workers, timeout)
        journal.close()
        _write(path, output)
    except OSError as error:
        raise UserError(
            f"stopped after {journal.rows} videos: {error.strerror or error}; make room, and go on with --resume"
        ) from None
    except BaseException:
        say(f"{journal.rows} videos are scored and kept in '{path}'; go on with --resume")
        raise
    path.unlink()
    return Summary(journal.rows, journal.errors, before)


def _score(
    inputs: Sequence[str],
    share: Share | None,
    journal: Journal,
    workers: Sequence[WorkerSettings],
    timeout: float,
) -> None:
    total = _Count(inputs, share)
    with Progress("scoring", None, unit="videos") as progress, Supervisor(workers, timeout=timeout) as supervisor:
        for rows in supervisor.score(_left(inputs, share, journal)):
            journal.write([row for _, row in rows])
            progress.show(journal.rows, total.value, errors=str(journal.errors))


def _left(inputs: Sequence[str], share: Share | None, journal: Journal) -> Iterator[Task]:
    """Videos that have no row yet."""
    begun = journal.rows > 0
    for number, video in enumerate(discover(inputs)):
        if share and video not in share:
            continue
        if not begun or str(video) not in journal.seen:
            yield number, str(video)


def _write(path: Path, output: Output) -> None:
    rows: Iterable[Row] = read_rows(path)
    if output.sort:
        rows = sorted(rows, key=lambda row: str(row[PATH]))
    rows = iter(rows)
    with open_sink(output.path, output.columns) as sink:
        while part := list(islice(rows, _AT_ONCE)):
            sink.write(part)


class _Count:
    """Counts the inputs beside the work, so that progress can say what is left."""

    def __init__(self, inputs: Sequence[str], share: Share | None) -> None:
        self.value: int | None = None
        self._inputs, self._share = inputs, share
        if STDIN not in inputs:
            threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        try:
            self.value = sum(1 for video in discover(self._inputs) if not self._share or video in self._share)
        except (OSError, UserError):
            self.value = None  # said where the videos are scored
