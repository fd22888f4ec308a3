"""Progress on stderr: a live bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from ssv2rt.core.log import printable
from ssv2rt.core.quantities import clock

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRACKED = 256
"""Items from one look at the clock to the next."""
FIRST_LINE = 2.0
"""Seconds before the first log line."""
NEXT_LINE = 10.0
"""Seconds between log lines."""


class Progress:
    """Progress of one piece of work.

        with Progress("training", total=1600) as progress:
            progress.show(512, loss="1.21")

    On a terminal this is a live bar. Elsewhere it is a log line every few seconds, and none for work of less than two seconds.
    Nothing is shown if the logger `ssv2rt` does not accept the level INFO.

    Args:
        what: name of the work, in a few words.
        total: total number of units; None if not known yet.
        unit: what is counted.
        quiet: show nothing, as for all ranks but the first.
        already_done: units done before this call, such as by an interrupted run. They do not count in the rate.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "clips", *, quiet: bool = False, already_done: int = 0
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._start = time.monotonic()
        self._next = self._start + FIRST_LINE
        self._done = self._already_done = already_done
        self._quiet = quiet or not logger.isEnabledFor(logging.INFO)
        self._live = _live_bar(what, total, unit, already_done) if sys.stderr.isatty() and not self._quiet else None
        self._drawn = -1.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live[0].stop()
        elif self._next > self._start + FIRST_LINE and kind is None:
            logger.info("%s, done in %s", self._line(), clock(time.monotonic() - self._start))

    def due(self) -> bool:
        """Whether a call of `show` would be displayed. Lets the caller skip computing expensive facts."""
        if self._live:
            return time.monotonic() - self._drawn >= 0.5
        return not self._quiet and time.monotonic() >= self._next

    def show(self, done: int, total: int | None = None, **facts: str) -> None:
        """Sets the number of units done, and facts to display with it, such as loss="1.21"."""
        self._done = done
        self._total = total if total is not None else self._total
        text = printable(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
        if self._live:
            self._drawn = time.monotonic()
            bar, task = self._live
            bar.update(task, completed=done, total=self._total, facts=text, rate=self._rate_in_words())
            return
        now = time.monotonic()
        ended = self._done == self._total  # then the last line says so
        if now >= self._next and not (self._quiet or ended):
            self._next = now + NEXT_LINE
            logger.info("%s%s%s", self._line(), self._left(), f", {text}" if text else "")

    def add(self, units: int, **facts: str) -> None:
        """Like `show`, with the number of units done since the last call."""
        self.show(self._done + units, None, **facts)

    def _rate(self) -> float:
        return (self._done - self._already_done) / max(1e-9, time.monotonic() - self._start)

    def _line(self) -> str:
        of = f"{self._done}/{self._total}" if self._total else str(self._done)
        return f"{self._what}: {of} {self._unit}, {self._rate_in_words()}"

    def _rate_in_words(self) -> str:
        rate = self._rate()
        return f"{rate:.0f}/s" if rate >= 9.95 or not rate else f"{rate:.1f}/s"

    def _left(self) -> str:
        if not self._total or not self._rate():
            return ""
        return f", {clock((self._total - self._done) / self._rate())} left"


def tracked(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Passes items on, and shows how many; see `Progress` for `what` and `unit`."""
    done = 0
    with Progress(what, unit=unit) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            if done % _TRACKED == 0:
                progress.show(done)
        progress.show(done)


def _live_bar(what: str, total: int | None, unit: str, done: int):  # type: ignore[no-untyped-def]  # rich is imported late
    """A progress bar in one line. On a narrow terminal, the name and the facts are shortened first."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    def shortened(ratio: int) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)

    fixed = Column(no_wrap=True)
    bar = Bar(
        TextColumn("{task.description}", markup=False, table_column=shortened(2)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=fixed),
        TextColumn(unit, table_column=fixed),
        TextColumn("{task.fields[rate]}", table_column=fixed),
        TimeRemainingColumn(compact=True, table_column=fixed),
        TextColumn("{task.fields[facts]}", markup=False, table_column=shortened(3)),
        console=Console(stderr=True),
        expand=True,
    )
    return bar, bar.add_task(what, total=total, completed=done, rate="", facts="")
