"""Compiling a network takes minutes: it is shown while it runs, and an interrupt ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ssv2rt.core.progress import Progress

logger = logging.getLogger(__name__)


T = TypeVar("T")


def compile_network(trt: Any, builder: Any, network: Any, config: Any, enter: Callable[[], None]) -> Any:
    """Builds a serialised engine, showing how far it is.

    Args:
        enter: called first in the thread that builds.

    Returns:
        The plan, as `IHostMemory`; None if the builder failed.

    Raises:
        KeyboardInterrupt: or what else a signal handler raises. The builder has ended by then; after a second one it
            may not have.
    """
    phases = Phases()
    monitor = _monitor(trt, phases)
    config.progress_monitor = monitor

    def work() -> Any:
        enter()
        return builder.build_serialized_network(network, config)

    def stop() -> None:
        phases.stopped = True
        logger.warning("stopping TensorRT at the end of its step; press Ctrl-C again to leave it behind")

    with Progress("compiling", unit="steps") as progress:

        def watch() -> None:
            if progress.due():
                progress.show(phases.steps, phase=phases.now)

        plan = interruptible(work, stop, watch)
        progress.show(phases.steps)
    return plan


class Phases:
    """Where the builder is: phases within phases, each of some steps. Told by the builder's threads."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps done, of all phases."""
        self.stopped = False
        """Whether the builder is to end."""
        self._open: dict[str, tuple[int, int]] = {}  # steps done and in all, the innermost phase last
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
        """Whether to go on."""
        with self._lock:
            self.steps += 1
            self._open[name] = (number + 1, self._open.get(name, (0, number + 1))[1])
            return not self.stopped

    def finish(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)


def interruptible(work: Callable[[], T], stop: Callable[[], None], watch: Callable[[], None]) -> T:
    """Does `work` in a thread, while this one looks on every tenth of a second and so can be interrupted.

    TensorRT calls back into Python from the thread that builds. An interrupt that reached such a call would have to
    pass through NVIDIA's code as an exception, and Python gives interrupts to the main thread only.

    Args:
        work: what to do. Its errors are raised here.
        stop: makes `work` end soon.
        watch: called in this thread while it runs.

    Raises:
        BaseException: what `work` raised; or what interrupted this thread, once `work` has ended.
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

    # A daemon, so that a second interrupt need not wait for it.
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


def _monitor(trt: Any, phases: Phases) -> Any:
    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
