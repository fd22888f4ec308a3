"""Messages go to the standard logger `ssv2rt`. The command sends them to stderr; an application does with them as it likes."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends messages of this level and above to stderr, a line each, and nowhere else."""
    logger = logging.getLogger("ssv2rt")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


def printable(text: str) -> str:
    """One line of text without what a terminal would obey: control characters and broken UTF-8 are written as escapes."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time of the message: a live progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
