"""How a process ends: a lost rank, no memory, no working directory, and an output that cannot be written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UserError, out_of_memory_as_user_error, says_out_of_memory
from ssv2rt.core.run_folders import Run
from tests.conftest import TINY_SETTINGS
from tests.training.test_resume import wait_for

COMMAND = (sys.executable, "-m", "ssv2rt", "recipes", "ssv2-i3d")


@pytest.mark.slow  # by default, test_nodes.py shows it for two nodes
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_all_in_one_line(killed: int, tiny_set: Path, tmp_path: Path) -> None:
    settings = [word for setting in (*TINY_SETTINGS, "train.epochs=5000") for word in ("--set", setting)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ssv2rt", "train", "ssv2-resnet3d18", "--data", str(tiny_set), "--name", "two", *settings]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, text=True)
    run = Run(tmp_path / "runs" / "two")
    wait_for(lambda: run.is_started, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    rank = {f"RANK={n}".encode(): n for n in (0, 1)}
    ranks = {
        rank[line]: int(c)
        for c in children
        for line in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")
        if line in rank
    }
    os.kill(ranks[killed], signal.SIGKILL)
    assert process.wait(60) != 0
    lines = (tmp_path / "said").read_text().splitlines()
    (lost,) = [line for line in lines if line.startswith("Error: ")]
    assert (
        lost.startswith(f"Error: rank {killed} (process {ranks[killed]} on ") and "was killed, or its machine" in lost
    )
    assert not any("ssv2rt/" in line and line.lstrip().startswith("File ") for line in lines)  # no traceback of ours
    assert run.is_started


def test_threads_are_shared_where_torchrun_sets_one(tmp_path: Path) -> None:
    """torchrun is the parent; here a process that does as it does."""
    code = "import torch; from ssv2rt.training import distributed as d; d.cores = lambda: 6; d._share_cores()"
    child = f"{code}; print(torch.get_num_threads())"
    parent = "import os, subprocess, sys; os.environ['OMP_NUM_THREADS'] = '1'; subprocess.run(sys.argv[1:], check=True)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "LOCAL_WORLD_SIZE": "2"
    }
    for extra, threads in (({}, "3"), ({"OMP_NUM_THREADS": "1"}, "1")):
        done = subprocess.run(
            [sys.executable, "-c", parent, sys.executable, "-c", child],
            env=environment | extra,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == threads, done.stderr


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    for call in (lambda: torch.empty(2**50, dtype=torch.uint8), lambda: bytearray(2**60)):
        with pytest.raises(UserError, match=r"^training: out of memory \(.*\); lower it$"):  # noqa: SIM117
            with out_of_memory_as_user_error("training", "lower it"):
                call()
    with pytest.raises(RuntimeError, match="shape"):  # noqa: SIM117
        with out_of_memory_as_user_error("training", "lower it"):
            torch.zeros(3).view(4)
    assert not says_out_of_memory(ValueError("out of memory"))


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: cannot write to stdout: No space left on device; files that the command has written are complete"
    ]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(COMMAND, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 0 and not done.stderr  # its reader has what it wanted


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(gone), *COMMAND[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: the working directory has been deleted (No such file or directory); change to a folder that exists"
    ]
