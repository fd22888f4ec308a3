"""A program for fault injection: a scoring run with test doubles that is killed at a chosen write, or lacks a resource.

Its argument is a JSON object of settings.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.scoring.row import columns
from ssv2rt.scoring.run import InputVideos, Output, score


class Counter:
    """Counts changes to the output folder, and kills the process at a chosen one; at a write, halfway through it."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self._folder, self._kill_at, self.count = str(folder), kill_at, 0

    def moment(self) -> bool:
        """Counts a change. Returns whether to kill the process now."""
        self.count += 1
        return self.count == self._kill_at

    def install(self) -> None:
        opened = builtins.open

        def open_counted(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            made = opened(file, mode, *arguments, **options)
            ours = isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(self._folder)
            return Counted(made, self) if ours and set(mode) & set("wa+") else made

        builtins.open = open_counted
        Path.open = lambda path, mode="r", *arguments, **options: open_counted(path, mode, *arguments, **options)  # type: ignore[method-assign, assignment, misc]
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.moment():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted


class Counted:
    """Wraps a file, and counts its writes."""

    def __init__(self, file: Any, counter: Counter) -> None:
        self._file, self._counter = file, counter

    def write(self, data: Any) -> int:
        if self._counter.moment():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def main(settings: dict[str, Any]) -> int:
    out = Path(settings["out"])
    counter = Counter(out.parent, settings.get("kill_at", 0))
    counter.install()
    if "bytes" in settings:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (settings["bytes"], settings["bytes"]))
    worker = WorkerSettings(f"tests.scoring.doubles:{settings.get('double', 'Deadly')}", settings.get("options", {}))
    try:
        done = score(
            InputVideos(settings["inputs"]),
            Output(out, columns(1), sort=True),
            [worker] * settings.get("workers", 1),
            {"engine": "double"},
            timeout=60,
            resume=settings.get("resume", False),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"videos": done.videos, "moments": counter.count, "MiB": usage / 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
