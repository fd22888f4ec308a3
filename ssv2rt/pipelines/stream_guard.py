"""Keeps memory alive until a GPU has finished reading it, without blocking the host."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Event(Protocol):
    """A point on a stream of a GPU: a `torch.cuda.Event` that was recorded there."""

    def query(self) -> bool:
        """Whether the event has completed."""


class StreamGuard:
    """Keeps references to objects until their CUDA event has completed. They are released in order."""

    def __init__(self) -> None:
        self._held: deque[tuple[Event, tuple[object, ...]]] = deque()

    def until(self, event: Event, *things: object) -> None:
        """Keeps some objects until an event has completed, and releases those whose events have."""
        self._held.append((event, things))
        while self._held and self._held[0][0].query():
            self._held.popleft()
