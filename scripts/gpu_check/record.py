"""What a section finds, written to a file line by line as it is found, so that nothing is lost when its process is."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Line = dict[str, Any]
NO_TIME = "no time left"


class Missing(Exception):
    """Something that is not here, and without which a part has nothing to do."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why


class Record:
    """Takes the findings of one part after the other.

    Args:
        file: where they go.
        work: folder of this check, for what sections leave to each other.
        quick: tiny sizes.
        dry: whether what takes a minute is run all the same, at tiny sizes and without a GPU.
    """

    def __init__(self, file: Path, *, work: Path, quick: bool, dry: bool = False) -> None:
        self._file, self.work, self.quick, self.dry = file, work, quick, dry
        self._part, self._ends = "", math.inf

    def begin(self, part: str, seconds: float) -> None:
        self._part, self._began = part, time.monotonic()
        self._ends = self._began + seconds
        self._write("begin", seconds=seconds)

    def end(self) -> None:
        self._write("end", seconds=time.monotonic() - self._began)

    def left(self) -> float:
        """Seconds that this part still has; what is long asks first."""
        return max(0.0, self._ends - time.monotonic())

    @property
    def tiny(self) -> bool:
        """Whether networks are small: asked for, or because there is no GPU to compute large ones."""
        if self.quick:
            return True
        import torch

        return not torch.cuda.is_available()

    @property
    def brief(self) -> bool:
        """Whether what takes a minute is left out."""
        return self.quick and not self.dry

    def moment(self, seconds: float) -> float:
        """How long to measure something for which there are so many seconds."""
        return min(seconds, 0.15) if self.quick else seconds

    def doing(self, what: object) -> None:
        """What is begun: named if it kills the process, or never ends."""
        self._write("doing", what=str(what))

    def fact(self, name: str, value: Any) -> None:
        """One figure, or one word."""
        self._write("fact", name=name, value=value)

    def row(self, table: str, **columns: Any) -> None:
        """One line of a table. The first row names the columns."""
        self._write("row", table=table, row=columns)

    def check(self, what: str, passed: bool, found: Any = "") -> bool:
        """Something that must hold. If it does not, the check as a whole has failed."""
        self._write("check", what=what, passed=bool(passed), found=found)
        return bool(passed)

    def unavailable_reason(self, what: str, why: str) -> None:
        """Something that is not here; that is no failure."""
        self._write("missing", what=what, why=why)

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def error(self, text: str, trace: str = "") -> None:
        """The part has failed."""
        self._write("error", text=text, trace=trace)

    def _write(self, kind: str, **facts: Any) -> None:
        line = json.dumps(_plain({"kind": kind, "part": self._part, **facts}), ensure_ascii=False)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def lines(file: Path, start: int = 0) -> tuple[list[Line], int]:
    """The whole lines of a file from byte `start`, and where the next ones begin."""
    if not file.exists():
        return [], start
    with file.open("rb") as opened:
        opened.seek(start)
        whole, newline, _ = opened.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line.strip()], start + len(whole) + len(newline)


def left_out(what: str) -> NoReturn:
    """Ends a part for which there is no time."""
    raise Missing(what, NO_TIME)


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no arrays' own numbers, no paths."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def steps(record: Record, items: Iterator[Any] | list[Any], *, each: float, what: str) -> Iterator[Any]:
    """Goes through items while there is time for another one, and notes what is begun and what is left out.

    Args:
        record: of the part.
        items: what to go through.
        each: seconds that one takes.
        what: names an item in the note.
    """
    rest = list(items)
    while rest:
        if record.left() < each:
            record.note(f"no time for {what}: {', '.join(str(item) for item in rest)}")
            return
        record.doing(rest[0])
        yield rest.pop(0)
