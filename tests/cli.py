"""The `ssv2rt` command for tests: in the process of the test, which spares the seconds that importing libraries takes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from ssv2rt.cli import main
from ssv2rt.core.log import log_to_stderr


class Done(NamedTuple):
    """What a call came to, named like the fields of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def ssv2rt(*arguments: object, cwd: Path | None = None) -> Done:
    """Calls `main` as `python -m ssv2rt` does, in `cwd`, with nothing on stdin.

    What libraries and child processes write counts too: the file descriptors 1 and 2 are redirected, not only Python's
    streams. The working directory, the environment, signal handlers and the log level are as before when it returns.
    """
    code = 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        with _as_in_a_process_of_its_own(arguments, cwd), _redirected(out, said):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:  # as the interpreter ends a program
                traceback.print_exc()
                code = 1
        return Done(code, _read(out), _read(said))


@contextlib.contextmanager
def _as_in_a_process_of_its_own(arguments: tuple[object, ...], cwd: Path | None) -> Iterator[None]:
    logger = logging.getLogger("ssv2rt")
    argv, folder, environment, level = sys.argv, os.getcwd(), dict(os.environ), logger.level
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.argv = ["ssv2rt", *(os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments)]
        os.chdir(cwd or folder)
        yield
    finally:
        sys.argv = argv
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        log_to_stderr(level)


@contextlib.contextmanager
def _redirected(out: TextIO, said: TextIO) -> Iterator[None]:
    streams = sys.stdin, sys.stdout, sys.stderr
    for stream in streams[1:]:
        stream.flush()
    kept = [os.dup(number) for number in range(3)]
    try:
        with open(os.devnull) as nothing:
            for number, file in enumerate((nothing, out, said)):
                os.dup2(file.fileno(), number)
        files = [os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))]
        files[2].reconfigure(line_buffering=True)  # type: ignore[union-attr]
        sys.stdin, sys.stdout, sys.stderr = files  # type: ignore[assignment]
        yield
        for file in files[1:]:
            file.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read()
