"""How busy the GPU and its video decoders are meanwhile: by NVML, or by nvidia-smi where its bindings are missing."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType

Sample = tuple[float, float]
"""Percent of the video decoders and of the GPU."""


class Usage:
    """Looks on in a thread while a block runs.

    with Usage() as usage:
        ...
    usage.decoder, usage.gpu
    """

    def __init__(self) -> None:
        self._look, self.source = _looker()
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Usage:
        if self._look:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._look:
            self._thread.join(timeout=5)

    @property
    def decoder(self) -> float | None:
        """Mean of the later half, since the driver itself averages over up to a second; None where nobody tells."""
        return self._mean(0)

    @property
    def gpu(self) -> float | None:
        return self._mean(1)

    def _mean(self, column: int) -> float | None:
        later = [sample[column] for sample in self._samples[len(self._samples) // 2 :]]
        return statistics.fmean(later) if later else None

    def _run(self) -> None:
        assert self._look
        while not self._stop.wait(0.1):
            try:
                self._samples.append(self._look())
            except Exception:  # a figure less
                return


def _looker() -> tuple[Callable[[], Sample] | None, str]:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)

        def by_nvml() -> Sample:
            decoder = pynvml.nvmlDeviceGetDecoderUtilization(handle)[0]
            return float(decoder), float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

        by_nvml()
        return by_nvml, "NVML"
    except Exception:  # not installed, no driver, or a driver that does not tell
        pass
    if not shutil.which("nvidia-smi"):
        return None, "nobody tells"
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.decoder,utilization.gpu", "--format=csv,noheader,nounits"]

    def by_command() -> Sample:
        said = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        decoder, gpu = (float(value) for value in said.strip().split(","))
        return decoder, gpu

    try:
        by_command()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, "nobody tells"
    return by_command, "nvidia-smi"
