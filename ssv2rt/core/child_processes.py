"""Child processes that do not outlive the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import signal

_PR_SET_PDEATHSIG = 1
"""Option of prctl(2)."""


def follow_parent() -> None:
    """Called first in a child process: leaves Ctrl-C to the parent, and ends with it, also if that is killed by `kill -9`.

    Otherwise the workers of a `ProcessPoolExecutor` would wait for ever for work from a process that is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
