"""A process that scores. Whatever a video does to it, it does to this process alone.

It is sent batches of videos, and answers each with its rows, in order; several are under way at once. A video that has many
rows is answered in parts, and an answer without rows says that the work goes on. `FLUSH` asks for the answers to all that it
has been sent, without more to come; `None` ends it. Once it knows more of which videos DALI is trusted with, it says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Clip, Data
    from ssv2rt.pipelines.decoder_trust import Decision
    from ssv2rt.scoring.segments import Windows

FLUSH = "flush"
READY = "ready"
TRUSTED = "trusted"
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


def make_scorer(
    *,
    bundle: str,
    top_k: int,
    clip: Clip,
    data: Data,
    extra_columns: Sequence[str] = (),
    windows: Windows | None = None,
    device: int | None = None,
    trusted: Mapping[str, Decision] | None = None,
) -> Any:
    """A `Scorer`, or a `WindowScorer` where there are windows.

    Args:
        bundle: its path.
        top_k: see `Predictor`.
        clip: see `Scorer`.
        data: the same.
        extra_columns: see `Predictor`.
        windows: see `WindowScorer`.
        device: number of the GPU; None for engines of CPUs.
        trusted: see `Scorer`.
    """
    from pathlib import Path

    import torch

    from ssv2rt.engines.bundle import open_bundle
    from ssv2rt.scoring.predictor import Predictor
    from ssv2rt.scoring.scorer import Scorer
    from ssv2rt.scoring.window_scorer import WindowScorer

    opened = open_bundle(Path(bundle))
    if device is not None and torch.cuda.is_available():  # else loading the engine says what is missing
        torch.cuda.set_device(device)
    gpu = torch.device("cuda", device) if device is not None else None
    predictor = Predictor(opened, top_k=top_k, extra_columns=extra_columns, device=gpu)
    if windows:
        return WindowScorer(predictor, data=data, clip=clip, windows=windows)
    return Scorer(predictor, data=data, clip=clip, trusted=trusted)


def work(connection: Connection, settings: WorkerSettings, log_level: int) -> None:
    """What the process does, until it is told to end or its parent is gone. Its messages go to stderr, from a level on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if settings.memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings.memory, settings.memory))
    from ssv2rt.core.errors import UserError
    from ssv2rt.core.log import log_to_stderr

    log_to_stderr(log_level)
    try:
        module, _, name = settings.factory.partition(":")
        scorer = getattr(importlib.import_module(module), name)(**settings.options)
    except UserError as error:
        connection.send(error)
        return
    connection.send((READY, scorer.videos, scorer.batches_ahead))
    # What comes is taken at once: if both ends of a connection waited for the other to listen, they would wait for ever.
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    ended = False
    told: dict[str, Decision] = {}

    def batches() -> Iterator[Any]:
        nonlocal ended
        while True:
            message = messages.get()
            if message is None:
                ended = True
                return
            if message == FLUSH:
                return
            yield message

    with contextlib.suppress(BrokenPipeError):
        try:
            while not ended:
                for rows in scorer.score(batches()):
                    if (trusted := getattr(scorer, "trusted", told)) != told:
                        told = dict(trusted)
                        connection.send((TRUSTED, told))
                    connection.send(rows)
        except UserError as error:
            connection.send(error)
    os._exit(0)  # threads that hang in a decoder are not waited for


def _listen(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    message: Any = FLUSH
    while message is not None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = None
        messages.put(message)
