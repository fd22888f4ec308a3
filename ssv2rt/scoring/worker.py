"""A process that scores. Whatever a video does to it, it does to this process alone.

It is sent batches of videos, and answers each with its rows, in order; several are under way at once. `FLUSH` asks for the
answers to all that it has been sent, without more to come; `None` ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

FLUSH = "flush"
READY = "ready"
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker makes its scorer of."""

    factory: str
    """module:callable that makes a scorer from `options`."""
    options: dict[str, Any]
    memory: int = 0
    """Bytes of address space that it may take; 0 for no limit."""


def make_scorer(**options: Any) -> Any:
    """A `Scorer` from plain values: path of the bundle, and what else `Scorer` takes."""
    from pathlib import Path

    import torch

    from ssv2rt.engines.bundle import open_bundle
    from ssv2rt.scoring.scorer import Scorer

    device = options.pop("device", None)
    bundle = open_bundle(Path(options.pop("bundle")))
    if device is not None and torch.cuda.is_available():  # else loading the engine says what is missing
        torch.cuda.set_device(device)
    return Scorer(bundle, **options, device=torch.device("cuda", device) if device is not None else None)


def work(connection: Connection, settings: WorkerSettings) -> None:
    """What the process does, until it is told to end or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if settings.memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings.memory, settings.memory))
    from ssv2rt.errors import UserError

    try:
        module, _, name = settings.factory.partition(":")
        scorer = getattr(importlib.import_module(module), name)(**settings.options)
    except UserError as error:
        connection.send(error)
        return
    connection.send((READY, scorer.videos, scorer.ahead))
    ended = False

    def batches() -> Iterator[Any]:
        nonlocal ended
        while True:
            try:
                message = connection.recv()
            except EOFError:
                message = None
            if message is None:
                ended = True
                return
            if message == FLUSH:
                return
            yield message

    with contextlib.suppress(BrokenPipeError):
        while not ended:
            for rows in scorer.score(batches()):
                connection.send(rows)
    os._exit(0)  # threads that hang in a decoder are not waited for
