"""A plugin for pytest: every outcome as a line of JSON, as it comes, in the file that GPU_CHECK_TESTS names."""

from __future__ import annotations

import json
import os
from typing import Any


def pytest_collection_modifyitems(items: list[Any]) -> None:
    _write(kind="collected", count=len(items))


def pytest_deselected(items: list[Any]) -> None:
    _write(kind="deselected", count=len(items))


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _write(kind="unreadable", name=report.nodeid, why=str(report.longrepr)[-2000:])


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    _write(kind=report.outcome, name=report.nodeid, seconds=report.duration, why=why[-2000:])


def _write(**facts: Any) -> None:
    with open(os.environ["GPU_CHECK_TESTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
