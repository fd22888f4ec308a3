"""SIGINT and SIGTERM while training: the first lets the step end, a second ends the process."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


class Stopped(UserError):
    """Training was stopped by a signal, after it had saved."""

    prefix = ""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class SignalHandler:
    """Takes the signals while the block runs.

    with Interruption() as interruption:
        while not interruption.signal: ...
    """

    signal = 0
    """The signal that came, or 0."""

    def __enter__(self) -> SignalHandler:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        logger.info("stopping after this step, and saving; once more to stop at once")
