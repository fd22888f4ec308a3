"""Builds an engine, which takes minutes, with a progress display, so that Ctrl-C can stop it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ssv2rt.core.progress import Progress

logger = logging.getLogger(__name__)


T = TypeVar("T")


def compile_network(trt: Any, builder: Any, network: Any, config: Any, enter: Callable[[], None]) -> Any:
    """Builds a serialized engine and shows the progress.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        builder: an `IBuilder`.
        network: the `INetworkDefinition` to compile.
        config: its `IBuilderConfig`; the progress monitor is set here.
        enter: called first in the thread that builds.

    Returns:
        The engine plan, as `IHostMemory`; None if the builder failed.

    Raises:
        KeyboardInterrupt: or another exception of a signal handler. The builder has stopped by then, unless a second
            interrupt arrived.
    """
    phases = BuildProgress()
    monitor = _monitor(trt, phases)
    config.progress_monitor = monitor

    def work() -> Any:
        enter()
        return builder.build_serialized_network(network, config)

    def stop() -> None:
        phases.stopped = True
        logger.warning("stopping TensorRT after the current step; press Ctrl-C again to not wait for it")

    with Progress("compiling", unit="steps") as progress:

        def watch() -> None:
            if progress.due():
                progress.show(phases.steps, phase=phases.now)

        plan = run_interruptibly(work, stop, watch)
        progress.show(phases.steps)
    return plan


class BuildProgress:
    """Progress of the builder: nested phases, each with a number of steps. Updated from the builder's threads."""

    def __init__(self) -> None:
        self.steps = 0
        """Completed steps of all phases."""
        self.stopped = False
        """Whether the builder should stop."""
        self._open: dict[str, tuple[int, int]] = {}  # completed and total steps; the innermost phase is last
        self._lock = threading.Lock()

    @property
    def now(self) -> str:
        """The innermost phase, such as 'Timing graph nodes 3/20'."""
        with self._lock:
            return next((f"{name} {done}/{total}" for name, (done, total) in reversed(self._open.items())), "")

    def start(self, name: str, total: int) -> None:
        with self._lock:
            self._open[name] = (0, total)

    def step(self, name: str, number: int) -> bool:
        """Counts a completed step. Returns whether the builder should continue."""
        with self._lock:
            self.steps += 1
            self._open[name] = (number + 1, self._open.get(name, (0, number + 1))[1])
            return not self.stopped

    def finish(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)


def run_interruptibly(work: Callable[[], T], stop: Callable[[], None], watch: Callable[[], None]) -> T:
    """Runs `work` in another thread, while this thread wakes up every 0.1 s and so stays interruptible.

    TensorRT calls back into Python from the thread that builds. If that were the main thread, a KeyboardInterrupt could be
    raised in such a callback, and would have to propagate through NVIDIA's C++ code. Python raises it in the main thread
    only.

    Args:
        work: the function to run. Its exceptions are raised here.
        stop: makes `work` return soon.
        watch: called in this thread, every 0.1 s while `work` runs.

    Raises:
        BaseException: the exception of `work`; or, after `work` has ended, the exception that interrupted this thread.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    finished = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    # A daemon thread, so that the process can exit after a second interrupt.
    thread = threading.Thread(target=run, name="TensorRT builder", daemon=True)
    try:
        thread.start()
        while not finished.wait(0.1):
            watch()
    except BaseException:
        stop()
        while not finished.wait(0.1) and thread.ident is not None:  # None if the interrupt came before it started
            pass
        raise
    if errors:
        raise errors[0]
    return results[0]


def _monitor(trt: Any, phases: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
