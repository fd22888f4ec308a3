"""Faults made on purpose. Named by nobody but tests, and by those who doubt that faults are contained."""

from __future__ import annotations

import os
import signal
import time

from gpu_check.record import Record


def fine(record: Record) -> None:
    record.fact("reached", True)
    record.check("one is one", 1 == 1)


def error(record: Record) -> None:
    record.fact("kept", "what came before the error")
    raise RuntimeError("made on purpose")


def unavailable_reason(record: Record) -> None:
    import no_such_package_as_this  # noqa: F401


def broken(record: Record) -> None:
    record.check("a check that does not hold", False, "made on purpose")


def crash(record: Record) -> None:
    record.fact("kept", "what came before the crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(record: Record) -> None:
    record.row("kept", what="what came before the hang")
    record.doing("sleeping")
    time.sleep(3600)
