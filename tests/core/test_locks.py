"""Locks: one process holds one at a time, a killed one lets go of it, and no file stays behind."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.core.locks import exclusive

HOLD = """
import sys, pathlib
from ssv2rt.core.locks import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "building"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of `path`; it is killed at the end, as by `kill -9`."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_owner_is_named_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "new" / "int8"
    with held_elsewhere(path) as process:
        says = f"^process {process.pid} on .* is building '{path}'; wait for it to end"
        with pytest.raises(UserError, match=says), exclusive(path, "building"):
            pass
        with exclusive(tmp_path / "new" / "fp16", "building"):
            pass
    assert (tmp_path / "new" / ".int8.lock").exists()  # it was killed
    with exclusive(path, "building"), pytest.raises(UserError, match="^process "), exclusive(path, "building"):
        pass
    assert not list((tmp_path / "new").iterdir())


def test_a_process_that_opened_the_file_before_it_was_removed_gets_the_new_one(tmp_path: Path) -> None:
    """Otherwise two processes would each hold the lock of a different file."""
    from ssv2rt.core import locks

    flock, first = locks.fcntl.flock, True

    def flock_late(descriptor: int, how: int) -> None:
        nonlocal first
        if first:
            first = False
            (tmp_path / ".x.lock").unlink()  # as its owner does just now
        flock(descriptor, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", flock_late)
        with exclusive(tmp_path / "x", "writing"):
            assert not first and (tmp_path / ".x.lock").exists()
            with pytest.raises(UserError, match="is writing"), exclusive(tmp_path / "x", "writing"):
                pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    says = "cannot write to '.*file/engines': Not a directory; use a folder"
    with pytest.raises(UserError, match=says), exclusive(tmp_path / "file" / "engines" / "int8", "building"):
        pass
