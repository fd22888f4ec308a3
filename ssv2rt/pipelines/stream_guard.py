"""What a GPU still reads is held on to, without waiting for it."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Event(Protocol):
    """A point on a stream of a GPU: a `torch.cuda.Event` that was recorded there."""

    def query(self) -> bool:
        """Whether the GPU has come so far."""


class StreamGuard:
    """Objects that live until a GPU has passed the event that they are held until. They are let go in their order."""

    def __init__(self) -> None:
        self._held: deque[tuple[Event, tuple[object, ...]]] = deque()

    def until(self, event: Event, *things: object) -> None:
        """Holds on to some objects, and lets go of those whose events have passed."""
        self._held.append((event, things))
        while self._held and self._held[0][0].query():
            self._held.popleft()
