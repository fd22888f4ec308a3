"""Runs a TensorRT execution context repeatedly, and replays full batches as a CUDA graph to save kernel launches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ssv2rt.core.errors import one_line

logger = logging.getLogger(__name__)


Enqueue = Callable[[], None]
"""Enqueues work on a CUDA stream."""


class CudaGraphRunner:
    """Enqueues batches on a stream. A full batch runs normally the first time, is captured the second time, and is replayed
    from then on.

    A CUDA graph is valid only for the batch size that the context had at capture. It is dropped when the batch size
    changes, and captured again after full batches return.

    Args:
        resize: sets the number of clips of the context.
        run: enqueues the context once. The first run after a resize also initializes, which cannot be captured.
        capture: enqueues a full batch once and captures it. Returns the function that replays it, or None on failure.
        full: clips of a full batch; 0 to capture nothing.
    """

    def __init__(
        self, *, resize: Callable[[int], None], run: Enqueue, capture: Callable[[], Enqueue | None], full: int
    ) -> None:
        self._resize, self._run, self._capture, self._full = resize, run, capture, full
        self._count = 0
        self._replay: Enqueue | None = None

    def __call__(self, count: int) -> None:
        """Enqueues a batch of `count` clips."""
        if count != self._count:
            self._replay, self._count = None, 0
            self._resize(count)
            self._run()
            self._count = count
        elif self._replay:
            self._replay()
        elif count == self._full:
            self._replay = self._capture()
            if not self._replay:
                self._full = 0
        else:
            self._run()


def capture(run: Enqueue, stream: Any, results: torch.Tensor) -> Enqueue | None:
    """Captures work as a CUDA graph, and checks that a replay gives the same results.

    Args:
        run: enqueues the work on `stream`. It must have run before.
        stream: the current stream, on the GPU of the results.
        results: float32 buffer that the work writes to. Afterwards it holds the results of the work.

    Returns:
        The function that replays the graph; None, with a warning, if the capture failed or gives other results.
    """
    run()
    expected = results.clone()
    graph = torch.cuda.CUDAGraph()
    try:
        # Not "global": other threads decode at the same time and may allocate memory.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
        results.fill_(torch.nan)
        graph.replay()
        # A capture may be empty without an error. The replay then leaves the NaNs in place.
        if torch.allclose(results, expected, rtol=1e-2, atol=1e-2, equal_nan=bool(expected.isnan().any())):
            return graph.replay
        reason = "its replay gives other results"
    except RuntimeError as error:
        reason = one_line(error)
    logger.warning(f"no CUDA graph was captured ({reason}); the kernels of a batch are launched one by one")
    run()  # restore the results, which the replay may have overwritten
    return None
