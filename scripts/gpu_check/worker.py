"""The process that runs the parts of a section."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_check.record import NO_TIME, Missing, Record

GPU_BROKEN = 70
"""Exit code: a part has failed and left the GPU unusable for this process; the rest needs a new one."""
OURS = ("ssv2rt", "gpu_check")


def run(job: dict[str, Any]) -> int:
    """Runs parts one after the other.

    Args:
        job: `file` for the findings, `work`, `quick`, `dry`, `seconds` for all, and `parts`: name, function, usual seconds.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # how it is asked where it hangs
    record = Record(Path(job["file"]), work=Path(job["work"]), quick=job["quick"], dry=job["dry"])
    ends = time.monotonic() + job["seconds"]
    parts = job["parts"]
    for number, (name, function, usual) in enumerate(parts):
        rest = sum(later for _, _, later in parts[number:])
        left = min(
            (ends - time.monotonic()) * usual / rest, (9 if record.dry else 3) * usual
        )  # compilers are slow on CPUs
        record.begin(name, max(1.0, left))
        if left < usual / 10:  # it would only be stopped
            record.unavailable_reason(name, NO_TIME)
            record.end()
            continue
        failed = _run_part(record, function)
        record.end()
        if failed and _gpu_is_broken():
            sys.stderr.flush()
            os._exit(GPU_BROKEN)  # the usual way out would touch the GPU again
    return 0


def _run_part(record: Record, function: str) -> bool:
    """Returns whether it failed."""
    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(f"gpu_check.{module}"), name)(record)
        return False
    except Missing as error:
        record.unavailable_reason(error.what, error.why)
        return False
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith(OURS):
            record.unavailable_reason(error.name, f"not installed ({_way_to(error)})")
            return False
        _fail(record, error)
    except ImportError as error:
        if "shared object" in str(error):
            record.unavailable_reason(error.name or "a library", _first_line(error))
            return False
        _fail(record, error)
    except Exception as error:
        _fail(record, error)
    return True


def _fail(record: Record, error: BaseException) -> None:
    traceback.print_exc()
    record.error(f"{type(error).__name__}: {_first_line(error)}", "".join(traceback.format_exception(error))[-4000:])


def _way_to(error: BaseException) -> str:
    """The module of this project that asked for what is not there."""
    asking, trace = "", error.__traceback__
    while trace:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        asking, trace = name if name.startswith("ssv2rt.") else asking, trace.tb_next
    return f"wanted by {asking}" if asking else "wanted here"


def _first_line(error: BaseException) -> str:
    rows = [line.strip() for line in str(error).splitlines() if line.strip()]
    return rows[0][:400] if rows else type(error).__name__


def _gpu_is_broken() -> bool:
    """After an illegal access every call fails, until the process ends."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except RuntimeError:
        return True
    return False


def main(text: str) -> int:
    return run(json.loads(text))
