"""Running a TensorRT context again and again: full batches from a CUDA graph, which saves launching their kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


Work = Callable[[], None]


class CudaGraphRunner:
    """Enqueues batches on a stream. A full one is run plainly first, recorded the second time, and then replayed.

    A recording holds for the batch size that the context had when it was made. It is dropped when another size comes,
    and made anew when full batches come again.

    Args:
        resize: tells the context the number of clips.
        run: enqueues the context once. The first run of a size also prepares for it, which cannot be recorded.
        record: enqueues a full batch once, recording it. Gives what replays it, or None if that cannot be.
        full: clips of a full batch; 0 to record nothing.
    """

    def __init__(
        self, *, resize: Callable[[int], None], run: Work, record: Callable[[], Work | None], full: int
    ) -> None:
        self._resize, self._run, self._record, self._full = resize, run, record, full
        self._count = 0
        self._replay: Work | None = None

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
            self._replay = self._record()
            if not self._replay:
                self._full = 0
        else:
            self._run()


def record(run: Work, stream: Any, results: torch.Tensor) -> Work | None:
    """Records work as a CUDA graph, and tries the recording out.

    Args:
        run: enqueues the work on `stream`, which is current. It has been run before.
        stream: of the results' GPU.
        results: float32, of what the work writes. Holds the results of this run in the end.

    Returns:
        What replays it; None, and a note on stderr, if it cannot be recorded or the recording computes something else.
    """
    run()
    expected = results.clone()
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads decode meanwhile, and may allocate.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
        results.fill_(torch.nan)
        graph.replay()
        # A recording may turn out empty without an error, and would leave the results as they were.
        if torch.allclose(results, expected, rtol=1e-2, atol=1e-2, equal_nan=bool(expected.isnan().any())):
            return graph.replay
        reason = "the recording computes something else"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    logger.warning(f"batches are not recorded as a CUDA graph ({reason}); they are enqueued one kernel at a time")
    run()  # for what the recording may have written
    return None
