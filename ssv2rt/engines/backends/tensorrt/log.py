"""Collects TensorRT's log messages instead of printing them, and turns errors into one line for the user."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any

LAYERS_MESSAGE = "Layers:\n"
"""Start of the verbose log message in which the builder lists the layers of the engine."""

_CODED = re.compile(r"Error Code \d+: ([^(]*?) ?\((.*)\)$")
_PLACE = re.compile(r"\.? ?\bIn [\w:~<>]+ at \S+:\d+|\[[\w.]+:\d+: \w+\] ")
_ASSERTION = re.compile(r"^Assertion failed: .*\): ")
_QUOTED = re.compile(r'&& "(.+)"')
_REPEATED_ERROR = "catchCudaError"
"""Part of errors that repeat the error before them with less detail."""


class Log:
    """Collects the messages of TensorRT's objects, from any thread.

    Attributes:
        logger: the `ILogger` to create TensorRT's objects with. It must outlive them.
        layers: the builder's message that lists the layers; empty until there is one.
    """

    def __init__(self, trt: Any) -> None:
        log = self

        class Logger(trt.ILogger):
            def log(self, severity: Any, msg: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    log._errors.append(msg)
                elif msg.startswith(LAYERS_MESSAGE):
                    log.layers = msg

        self.logger = Logger()
        self.layers = ""
        self._errors: deque[str] = deque(maxlen=50)

    @property
    def errors(self) -> tuple[str, ...]:
        """The last errors, oldest first, in TensorRT's words."""
        return tuple(self._errors)

    @property
    def reason(self) -> str:
        """The last informative error, in one line."""
        return first_reason(reversed(self.errors)) or "it gave no reason"

    def clear_errors(self) -> None:
        """Drops the errors so far, which were not fatal, so that `reason` only reports later ones."""
        self._errors.clear()


def first_reason(messages: Iterable[str]) -> str:
    """The first informative message, in one line; empty if there is none."""
    return next(
        (line for message in messages if _REPEATED_ERROR not in message and (line := strip_source_locations(message))),
        "",
    )


def strip_source_locations(message: str) -> str:
    """An error message in one line, without locations in NVIDIA's source code.

    `IBuilder::f: Error Code 4: API Usage Error (Shapes differ. In g at /_src/h.cpp:7)` becomes `Shapes differ`.
    """
    line = " ".join(message.split())
    if coded := _CODED.search(line):
        kind, line = coded[1], coded[2]
        line = _PLACE.sub("", line).strip()
        line = line[1:-1] if line.startswith("(") and line.endswith(")") else line or kind
    if quoted := _QUOTED.search(line):
        line = quoted[1]
    return _ASSERTION.sub("", line).rstrip(". ")


def parser_error_text(problem: Any) -> str:
    """The node and the reason of a parser error, such as "node 'conv1' (Conv): its kernel is not constant".

    Args:
        problem: a `ParserError`.
    """
    name, op = problem.node_name(), problem.node_operator()
    lines = [line for line in problem.desc().splitlines() if not line.startswith("Invalid Node")]
    reason = first_reason(lines)
    if not reason or reason == "false" or "Plugin not found" in reason:  # TensorRT's messages for an unknown operator
        reason = "this operator is not supported" if op else "it gave no reason"
    where = f"node '{name}' ({op})" if name and op else f"node {problem.node()} ({op})" if op else ""
    reason = reason.removeprefix(f"{name}: ") if name else reason
    return f"{where}: {reason}" if where else reason
