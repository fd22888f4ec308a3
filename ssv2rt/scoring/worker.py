"""The worker process, which scores videos so that a crashing decoder cannot take down the run.

Protocol, over a pipe. After starting, the worker sends (READY, videos in a batch, batches ahead) or a `UserError`. The parent
sends batches of videos, several of which may be in flight. The worker answers each with its rows, in order. A video with many
rows is answered in parts, and an empty list is a heartbeat. `FLUSH` asks the worker to finish all batches in flight without
waiting for more; None ends it. The worker sends (TRUSTED, decisions) when it learns which kinds of videos DALI can decode.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ssv2rt.core.child_processes import follow_parent

if TYPE_CHECKING:
    from ssv2rt.core.recipes import Clip, Data
    from ssv2rt.pipelines.decoder_trust import Decision
    from ssv2rt.scoring.segments import Windows

FLUSH = "flush"
READY = "ready"
TRUSTED = "trusted"


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker makes its scorer."""

    factory: str
    """module:function that is called with `options`, and returns a scorer."""
    options: dict[str, Any]
    memory: int = 0
    """Limit on the worker's address space in bytes; 0 for none."""


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
    """Makes a `Scorer`, or a `WindowScorer` if there are sliding windows.

    Args:
        bundle: path of the engine bundle.
        top_k: see `Predictor`.
        clip: see `Scorer`.
        data: see `Scorer`.
        extra_columns: see `Predictor`.
        windows: see `WindowScorer`.
        device: index of the GPU; None for an engine built for a CPU.
        trusted: see `Scorer`.
    """
    from pathlib import Path

    import torch

    from ssv2rt.engines.bundle import open_bundle
    from ssv2rt.scoring.predictor import Predictor
    from ssv2rt.scoring.scorer import Scorer
    from ssv2rt.scoring.window_scorer import WindowScorer

    opened = open_bundle(Path(bundle))
    if device is not None and torch.cuda.is_available():  # otherwise loading the engine reports what is missing
        torch.cuda.set_device(device)
    gpu = torch.device("cuda", device) if device is not None else None
    predictor = Predictor(opened, top_k=top_k, extra_columns=extra_columns, device=gpu)
    if windows:
        return WindowScorer(predictor, data=data, clip=clip, windows=windows)
    return Scorer(predictor, data=data, clip=clip, trusted=trusted)


def work(connection: Connection, settings: WorkerSettings, log_level: int) -> None:
    """The main function of a worker. It runs until the parent sends None or is gone. `log_level` is for logging to stderr."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    follow_parent()
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
    # A thread receives messages at once: both ends would deadlock if each were blocked in `send`.
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    ended = False
    reported_trust: dict[str, Decision] = {}

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
                    if (trusted := getattr(scorer, "trusted", reported_trust)) != reported_trust:
                        reported_trust = dict(trusted)
                        connection.send((TRUSTED, reported_trust))
                    connection.send(rows)
        except UserError as error:
            connection.send(error)
    os._exit(0)  # do not wait for threads that hang in a decoder


def _listen(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    message: Any = FLUSH
    while message is not None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = None
        messages.put(message)
