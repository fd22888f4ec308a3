"""Graceful stop of training on SIGINT or SIGTERM: the first signal stops after the step, a second one at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


class Stopped(UserError):
    """Training was stopped by a signal and has saved a checkpoint. The exit code is 128 + signal number."""

    prefix = ""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class SignalHandler:
    """Handles SIGINT and SIGTERM while the block runs.

        with SignalHandler() as handler:
            while not handler.signal: ...

    Outside the main thread, where Python allows no signal handlers, it does nothing.
    """

    signal = 0
    """Number of the signal received, or 0."""

    def __enter__(self) -> SignalHandler:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logger.warning("stopping after this step and saving a checkpoint; repeat the signal to stop at once")
