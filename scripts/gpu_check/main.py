"""Arguments, time and files of the check."""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_check import tables, worker
from gpu_check.sections import SECTIONS, Section, chosen
from gpu_check.supervise import Outcome, run_section

BUDGET = 450.0
"""Seconds for all sections, so that the whole is under 8 minutes even if the last one hangs."""
QUICK = 110.0


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 if nothing failed, 1 if something did, 2 for wrong arguments, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    if options.worker:
        return worker.main(options.worker)
    if options.list:
        for section in SECTIONS:
            if not section.hidden:
                print(f"{section.name:10} {section.title}: {', '.join(part.name for part in section.parts)}")
        return 0
    try:
        sections = chosen(options.sections)
    except ValueError as error:
        print(f"--sections: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    work = options.work or Path(tempfile.mkdtemp(prefix="gpu_check-"))
    work.mkdir(parents=True, exist_ok=True)
    for old in [*work.glob("*.jsonl"), *work.glob("*.log")]:  # of an earlier check
        old.unlink()
    try:
        return _run(sections, options, work.resolve())
    except KeyboardInterrupt:
        print(f"interrupted; {options.out / tables.NAME}.md has what was found until then", file=sys.stderr)
        return 130
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_check.py", description="Proves the GPU path on the machine at hand.")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where the two files go (default: here)"
    )
    parser.add_argument("--sections", default="", metavar="A,B", help="only these")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, and nothing that takes a minute")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes, and all that needs no CUDA, on the CPU even beside a GPU"
    )
    parser.add_argument("--list", action="store_true", help="name the sections and their parts")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help=f"for all (default {BUDGET:g}; quick {QUICK:g})"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep videos, engines and logs there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _run(sections: list[Section], options: argparse.Namespace, work: Path) -> int:
    began = time.monotonic()
    tiny = options.quick or options.dry_run
    stop_at = began + (options.budget or (QUICK if options.quick and not options.dry_run else BUDGET))
    report: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/gpu_check.py", *sys.argv[1:]]),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seconds": 0.0,
        "passed": False,
        "quick": tiny,
        "dry_run": options.dry_run,
        "sections": {},
    }

    told: set[tuple[str, str]] = set()

    def keep(name: str, outcome: Outcome) -> None:
        for part, state in outcome.parts.items():
            if state["status"] != "running" and (name, part) not in told:
                told.add((name, part))
                print(f"  {part}: {state['status']}, {state['seconds']:.1f} s", file=sys.stderr, flush=True)
        report["sections"][name] = {**outcome.as_dict(), "failures": outcome.failures()}
        report["seconds"] = time.monotonic() - began
        report["passed"] = not any(found["status"] == "failed" for found in report["sections"].values())
        tables.write(options.out, report)

    for number, section in enumerate(sections):
        print(f"[{time.monotonic() - began:4.0f} s] {section.name}: {section.title}", file=sys.stderr, flush=True)
        outcome = Outcome(section.title)
        try:
            run_section(
                section,
                outcome,
                seconds=_share(section, sections[number:], stop_at - time.monotonic(), 9 if options.dry_run else 3),
                work=work,
                quick=tiny,
                dry=options.dry_run,
                stop_at=stop_at,
                tell=lambda name=section.name, outcome=outcome: keep(name, outcome),  # type: ignore[misc]
            )
        except KeyboardInterrupt:
            outcome.interrupt()
            keep(section.name, outcome)
            raise
    _show(report, options.out)
    return 0 if report["passed"] else 1


def _share(section: Section, rest: list[Section], left: float, times: float) -> float:
    """The seconds of a section, of those that are left; what one does not use, the next ones have."""
    return min(left * section.seconds / sum(other.seconds for other in rest), times * section.seconds)


def _show(report: dict[str, Any], out: Path) -> None:
    rows = [tables.summary_row(name, found) for name, found in report["sections"].items()]
    print("\n".join(tables.table(rows)))
    for name, found in report["sections"].items():
        for text in found["failures"]:
            print(f"FAILED {name}: {text}")
    states = [part["status"] for found in report["sections"].values() for part in found["parts"].values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"parts: {counts}; {out / tables.NAME}.md has the figures")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends as Ctrl-C does: the process that runs is ended, and the files hold the parts that were done."""
    raise KeyboardInterrupt
