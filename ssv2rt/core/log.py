"""Logging: messages go to the logger `ssv2rt`. The command prints them to stderr; an application can handle them itself."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


def log_to_stderr(level: int = logging.INFO) -> None:
    """Prints messages of this level and above to stderr, one line each, and does not propagate them to the root logger."""
    logger = logging.getLogger("ssv2rt")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


def printable(text: str) -> str:
    """Text as one line that is safe to print: control characters and invalid UTF-8 are written as escapes."""
    return escape(" ".join(text.splitlines()))


def escape(text: str) -> str:
    """Text in which every control character, line breaks too, and invalid UTF-8 is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Looks up `sys.stderr` for each message, since a live progress bar replaces it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
