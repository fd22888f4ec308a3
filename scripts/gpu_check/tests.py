"""The tests that are marked `gpu`, with skipping counted as failing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from gpu_check.record import Missing, Record, lines

ROOT = Path(__file__).resolve().parents[2]
_ABSENT = re.compile(r"No module named '([\w.]+)'")


def pytest(record: Record) -> None:
    """Runs them, or without a GPU only collects them."""
    if importlib.util.find_spec("pytest") is None:
        raise Missing("pytest", "not installed")
    from gpu_check.measure import NO_GPU, device

    gpu = device().type == "cuda"
    file = record.work / "tests.jsonl"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "gpu_check.pytest_lines", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *([] if gpu else ["--collect-only"]), "tests"]
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "SSV2RT_REQUIRE_GPU": "1",
        "GPU_CHECK_TESTS": str(file),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    stopped = False
    while process.poll() is None:
        if record.left() < 1:
            process.kill()
            stopped = True
            break
        time.sleep(0.1)
    process.wait()
    _report(record, file, gpu=gpu)
    if stopped:
        record.note("stopped: no time left; the outcomes are those until then")
    if not gpu:
        raise Missing("GPU", NO_GPU)


def _report(record: Record, file: Path, *, gpu: bool) -> None:
    found, _ = lines(file)
    counts = {
        kind: sum(line["kind"] == kind for line in found) for kind in ("passed", "failed", "skipped", "unreadable")
    }
    collected = sum(line["count"] for line in found if line["kind"] == "collected")
    others = sum(line["count"] for line in found if line["kind"] == "deselected")
    record.fact("tests marked gpu", collected - others)
    for kind, count in counts.items():
        record.fact(f"tests {kind}" if kind != "unreadable" else "test files that could not be imported", count)
    wrong = 0
    for line in found:
        if line["kind"] not in ("failed", "skipped", "unreadable"):
            continue
        said = [row.removeprefix("E").strip() for row in line["why"].splitlines() if row.strip()]
        record.row("not passed", test=line["name"], outcome=line["kind"], why=said[-1][:300] if said else "")
        if absent := _ABSENT.search(line["why"]):
            record.unavailable_reason(absent.group(1), f"wanted by {line['name']}")
        else:
            wrong += line["kind"] != "skipped"
    with contextlib.suppress(OSError):
        file.unlink()
    if gpu or wrong:
        record.check("no test fails", not wrong, f"{wrong} fail")
