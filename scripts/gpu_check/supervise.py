"""Runs a section in processes of its own: one, and another one for the parts that are left after a crash or a hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check.record import NO_TIME, Line, lines
from gpu_check.sections import Part, Section
from gpu_check.worker import GPU_BROKEN

SCRIPT = Path(__file__).resolve().parents[1] / "gpu_check.py"
GRACE = 5.0
"""Seconds that a part may have beyond its own and half as much again, before it counts as hanging."""
STARTING = 60.0
"""Seconds until the process begins its first part."""
WAY_OUT = 20.0
"""Seconds from the end of the last part to the end of the process."""
_BAD = ("failed", "crashed", "timed out")


@dataclass
class Outcome:
    """What a section found, and how its parts ended."""

    title: str
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: `status`, `seconds`, `doing` (what was begun last) and, where it failed, `error` and `trace`."""
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    unavailable_reason: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """The last lines of what its processes said, if it failed."""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        states = [part["status"] for part in self.parts.values()]
        if any(state in _BAD for state in states) or not all(check["passed"] for check in self.checks):
            return "failed"
        for other in ("missing", "left out"):
            if states and all(state == other for state in states):
                return other
        return "passed"

    def failures(self) -> list[str]:
        """What is wrong, a line each."""
        found = [f"{name}: {part['status']}, {part['error']}" for name, part in self.parts.items() if "error" in part]
        return found + [f"{c['part']}: not so: {c['what']} ({c['found']})" for c in self.checks if not c["passed"]]

    def as_dict(self) -> dict[str, Any]:
        return {"status": self.status, **vars(self)}

    def take(self, line: Line) -> None:
        """One line of the worker's."""
        part, kind = line["part"], line["kind"]
        if kind == "begin":
            self.parts[part] = {"status": "running", "seconds": 0.0}
        elif kind == "end":
            self._end(part, line["seconds"])
        elif kind == "doing":
            self.parts[part]["doing"] = line["what"]
        elif kind == "error":
            self.parts[part] |= {"status": "failed", "error": line["text"], "trace": line["trace"]}
        elif kind == "fact":
            name = f"{part}: {line['name']}" if line["name"] in self.facts else line["name"]
            self.facts[name] = line["value"]
        elif kind == "row":
            self.tables.setdefault(line["table"], []).append(line["row"])
        elif kind == "check":
            self.checks.append({name: line[name] for name in ("part", "what", "passed", "found")})
        elif kind == "missing":
            self.unavailable_reason.append({name: line[name] for name in ("part", "what", "why")})
        elif kind == "note":
            self.notes.append(f"{part}: {line['text']}")

    def interrupt(self) -> None:
        """The check is ended from outside."""
        for state in self.parts.values():
            if state["status"] == "running":
                state |= {"status": "failed", "error": "interrupted"}

    def _end(self, part: str, seconds: float) -> None:
        """A part that checked nothing because something is missing is itself missing."""
        state = self.parts[part]
        state["seconds"] = seconds
        if state["status"] != "running":
            return
        held = [check["passed"] for check in self.checks if check["part"] == part]
        whys = [
            unavailable_reason["why"]
            for unavailable_reason in self.unavailable_reason
            if unavailable_reason["part"] == part
        ]
        if whys and not held:
            state["status"] = "left out" if all(why == NO_TIME for why in whys) else "missing"
        else:
            state["status"] = "passed" if all(held) else "failed"


def run_section(
    section: Section,
    outcome: Outcome,
    *,
    seconds: float,
    work: Path,
    quick: bool,
    dry: bool,
    stop_at: float,
    tell: Callable[[], None],
) -> None:
    """Runs a section.

    Args:
        section: which.
        outcome: takes what it finds.
        seconds: that it should take.
        work: folder of this check.
        quick: tiny sizes.
        dry: whether GPUs are hidden, and what takes a minute is run all the same.
        stop_at: by `time.monotonic`; nothing runs on after it.
        tell: called after every part.
    """
    began, parts, number = time.monotonic(), list(section.parts), 0
    while parts and time.monotonic() < stop_at - 1:
        number += 1
        # What comes after a hang has its own time, unless there is none any more.
        own = sum(part.seconds for part in parts) * min(1.0, seconds / section.seconds)
        left = min(max(own, seconds - (time.monotonic() - began)), stop_at - time.monotonic())
        run = Run(outcome, section.name, parts, left, number, work, quick, dry)
        parts = run.to_its_end(stop_at, lambda: _told(outcome, began, tell))
        _told(outcome, began, tell)
    for part in parts:
        outcome.parts[part.name] = {"status": "left out", "seconds": 0.0}
    _told(outcome, began, tell)


def _told(outcome: Outcome, began: float, tell: Callable[[], None]) -> None:
    outcome.seconds = time.monotonic() - began
    tell()


class Run:
    """One process and the parts that it is to run."""

    def __init__(
        self,
        outcome: Outcome,
        name: str,
        parts: Sequence[Part],
        seconds: float,
        number: int,
        work: Path,
        quick: bool,
        dry: bool,
    ) -> None:
        self._outcome, self._parts, self._work = outcome, parts, work
        self._file, self._log = work / f"{name}-{number}.jsonl", work / f"{name}.log"
        self._job: dict[str, Any] = {
            "file": str(self._file),
            "work": str(work),
            "quick": quick,
            "dry": dry,
            "seconds": seconds,
            "parts": [(part.name, part.run, part.seconds) for part in parts],
        }

    def to_its_end(self, stop_at: float, tell: Callable[[], None]) -> list[Part]:
        """Runs parts until they are done or their process is, and returns those that are left."""
        with self._log.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-u", str(SCRIPT), "--worker", json.dumps(self._job)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # so that its own helpers go with it
                env=_environment(self._work, quick=self._job["quick"], dry=self._job["dry"]),
            )
            try:
                hung = self._watch(process, stop_at, tell)
            finally:
                _end(process)
        return self._judge(hung, process.returncode)

    def _watch(self, process: subprocess.Popen[bytes], stop_at: float, tell: Callable[[], None]) -> bool:
        """Takes what the process writes until it ends. Returns whether it had to be given up."""
        start, since = 0, time.monotonic()
        limit = since + STARTING
        running: dict[str, Any] = {}
        while True:
            done = process.poll() is not None  # before the last look at the file
            found, start = lines(self._file, start)
            for line in found:
                self._outcome.take(line)
                if line["kind"] == "begin":
                    since, running = time.monotonic(), self._outcome.parts[line["part"]]
                    limit = since + 1.5 * line["seconds"] + GRACE
                elif line["kind"] == "end":
                    limit = time.monotonic() + WAY_OUT
                    tell()
            if running.get("status") == "running":
                running["seconds"] = time.monotonic() - since
            if done:
                return False
            if time.monotonic() > min(limit, stop_at + GRACE):
                with contextlib.suppress(OSError):
                    process.send_signal(signal.SIGUSR1)  # it says where it is
                    time.sleep(0.5)
                return True
            time.sleep(0.05)

    def _judge(self, hung: bool, code: int) -> list[Part]:
        """Writes down how the process ended, and returns the parts that it has not come to."""
        outcome, parts = self._outcome, self._parts
        fine = not hung and code in (0, GPU_BROKEN)
        status = "timed out" if hung else "crashed"
        begun = [part for part in parts if part.name in outcome.parts]
        if not fine:
            said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            outcome.log = [line[:400] for line in said[-60:]]
        if not begun:
            error = f"the process did not start its work, {'and hung' if hung else _how(code)}"
            outcome.parts |= {part.name: {"status": status, "seconds": 0.0, "error": error} for part in parts}
            return []
        name = begun[-1].name
        last = outcome.parts[name]
        if last["status"] == "running":
            error = f"stopped after {last['seconds']:.0f} s" if hung else _how(code)
            last |= {"status": status, "error": error + (f", at {last['doing']}" if "doing" in last else "")}
        elif len(begun) == len(parts) and not fine:
            found = "it did not" if hung else _how(code)
            outcome.checks.append({"part": name, "what": "the process ends by itself", "passed": False, "found": found})
        return list(parts[len(begun) :])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(work: Path, *, quick: bool, dry: bool) -> dict[str, str]:
    """What is compiled or made is kept with this check, and is gone with it."""
    places = {"SSV2RT_CACHE": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    settings = {name: str(work / folder) for name, folder in places.items()}
    if quick:  # threads that wait for each other at tiny sizes take seconds on busy cores
        settings |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if dry:
        settings["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **settings}


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
