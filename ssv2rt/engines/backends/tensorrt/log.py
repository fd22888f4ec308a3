"""What TensorRT says: kept rather than printed, and put into one line for the user."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any

LAYERS = "Layers:\n"
"""Begins the message, at the most talkative level, in which the builder lists the layers it has made."""

_CODED = re.compile(r"Error Code \d+: ([^(]*?) ?\((.*)\)$")
_PLACE = re.compile(r"\.? ?\bIn [\w:~<>]+ at \S+:\d+|\[[\w.]+:\d+: \w+\] ")
_ASSERTION = re.compile(r"^Assertion failed: .*\): ")
_QUOTED = re.compile(r'&& "(.+)"')
_ECHO = "catchCudaError"
"""Marks an error that repeats the one before it, less precisely."""


class Log:
    """Takes the messages of TensorRT's objects, from any thread.

    Attributes:
        logger: what TensorRT's objects are given. It must outlive them.
        layers: the builder's list of layers; empty until it has made one.
    """

    def __init__(self, trt: Any) -> None:
        log = self

        class Logger(trt.ILogger):
            def log(self, severity: Any, msg: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    log._errors.append(msg)
                elif msg.startswith(LAYERS):
                    log.layers = msg

        self.logger = Logger()
        self.layers = ""
        self._errors: deque[str] = deque(maxlen=50)

    @property
    def errors(self) -> tuple[str, ...]:
        """The last errors, oldest first, as TensorRT worded them."""
        return tuple(self._errors)

    @property
    def reason(self) -> str:
        """The last error that says something, in one line."""
        return reason_in(reversed(self.errors)) or "it gave no reason"

    def forget(self) -> None:
        """Drops errors that were survived, so that `reason` tells of what comes next."""
        self._errors.clear()


def reason_in(messages: Iterable[str]) -> str:
    """The first message that says something, in one line; empty if none does."""
    return next((line for message in messages if _ECHO not in message and (line := tidy(message))), "")


def tidy(message: str) -> str:
    """An error without the places in NVIDIA's sources, in one line.

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


def node_in(problem: Any) -> str:
    """What the parser's error is about, and why: "node 'conv1' (Conv): its kernel is not constant".

    Args:
        problem: a `ParserError`.
    """
    name, op = problem.node_name(), problem.node_operator()
    lines = [line for line in problem.desc().splitlines() if not line.startswith("Invalid Node")]
    reason = reason_in(lines)
    if not reason or reason == "false" or "Plugin not found" in reason:  # how operators that it does not know end
        reason = "this operator is not supported" if op else "it gave no reason"
    where = f"node '{name}' ({op})" if name and op else f"node {problem.node()} ({op})" if op else ""
    reason = reason.removeprefix(f"{name}: ") if name else reason
    return f"{where}: {reason}" if where else reason
