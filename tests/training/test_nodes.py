"""Training on two nodes that share nothing but the data: each has a working folder, a home and a cache of its own."""

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from ssv2rt.core.run_folders import Run
from ssv2rt.models.weights import WEIGHTS
from ssv2rt.training.metrics_log import read_metrics
from tests.conftest import TINY_SETTINGS
from tests.training.nodes import Nodes
from tests.training.test_resume import wait_for

SETTINGS = (*TINY_SETTINGS, "train.batch_size=4", "train.learning_rate=0.01")


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("Error: ")]


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def settings(*more: str) -> list[str]:
    return [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]


@pytest.mark.slow
def test_two_nodes_train_and_go_on(nodes: Nodes, tiny_run: Run, tiny_set: Path) -> None:
    """Only node 0 has the recipe, the initial weights, and later the run. The data lies at another path on node 1."""
    first, second = nodes.folders
    (first / "mine.toml").write_text("[augment]\ncolor = 0.0\n")
    shutil.copy(tiny_run.checkpoints / "best" / WEIGHTS, first / "initial.safetensors")
    for node, place in enumerate(nodes.folders):
        (place / f"data{node}").symlink_to(tiny_set)
    words = ("mine.toml", "--init", "initial.safetensors", "--data", "data{node}", "--name", "two", *settings())
    codes, said = nodes.run(*words, torchrun=True)
    assert codes == [0, 0], said
    assert "10 of 10 classes are taken over by name" in said[0] and "epoch 1/1: loss" in said[0]
    assert "epoch" not in said[1] and not (second / "runs").exists()
    codes, said = nodes.run("--resume", "two", "--data", "data{node}", "--epochs", "2")
    assert codes == [0, 0], said
    assert "run 'two' goes on from epoch 1" in said[0] and not (second / "runs").exists()
    lines = [line for line in read_metrics(first / "runs/two/metrics.jsonl") if "validation" in line]
    assert [(line["epoch"], line["validation"]["clips"]) for line in lines] == [(1, 10), (2, 10)]
    (second / "runs").mkdir()
    (first / "runs/two").rename(second / "runs/two")
    codes, said = nodes.run("--resume", "two", "--data", "data{node}")
    assert codes == [1, 1]
    for lines in map(errors, said):
        assert len(lines) == 1 and "run to resume is not on the machine of rank 0 (" in lines[0]
        assert "but on that of rank 1 (" in lines[0] and "start torchrun with --node-rank 0 on that machine" in lines[0]


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_both_nodes_and_is_named(nodes: Nodes, tiny_set: Path, killed: int) -> None:
    nodes.start("demo", "--data", tiny_set, "--name", "two", *settings("train.epochs=5000", "train.log_every=1"))
    metrics = nodes.folders[0] / "runs/two/metrics.jsonl"
    wait_for(metrics.is_file, nodes.processes[0])
    os.kill(nodes.processes[killed].pid, signal.SIGKILL)
    codes, said = nodes.wait()
    assert (codes[killed], codes[1 - killed]) == (-9, 1)
    (line,) = errors(said[1 - killed])
    name = rf"rank {killed} \(process {nodes.processes[killed].pid} on {re.escape(socket.gethostname())}\)"
    assert re.fullmatch(
        rf"Error: {name} was killed, or its machine or network failed; see the log of that machine, and continue from the "
        r"last checkpoint with `--resume`",
        line,
    )
    assert "Traceback" not in said[1 - killed]


@pytest.mark.slow
def test_what_fails_on_one_node_is_said_on_both(nodes: Nodes, tiny_set: Path) -> None:
    (nodes.folders[0] / "data").symlink_to(tiny_set)
    codes, said = nodes.run("demo", "--data", "data", *settings())
    assert codes == [1, 2]
    (here,), (there,) = map(errors, said)
    assert there == "Error: no data '{}'; give --data a folder or a table of clips".format(nodes.folders[1] / "data")
    assert re.fullmatch(
        rf"Error: rank 1 \(process \d+ on .*\) failed: {re.escape(there.removeprefix('Error: '))}", here
    )
    assert not list((nodes.folders[0] / "runs").glob("*"))


@pytest.mark.slow
def test_a_node_that_waits_forever_is_ended(nodes: Nodes, tiny_set: Path) -> None:
    """Other options on node 1, and then a stop of the whole by a signal to one of the nodes."""
    codes, said = nodes.run("demo", "--data", tiny_set, "--name", "t{node}", *settings())
    assert codes == [1, 1]
    assert "have different options: name is 't0' in rank 0 and 't1' in rank 1; start all" in errors(said[0])[0]
    nodes.start("demo", "--data", tiny_set, "--name", "two", *settings("train.epochs=5000"))
    run = Run(nodes.folders[0] / "runs/two")
    wait_for(lambda: run.is_started, nodes.processes[0])
    os.kill(nodes.processes[1].pid, signal.SIGTERM)
    codes, said = nodes.wait()
    assert codes == [143, 143] and all("stopped by SIGTERM, and everything is saved" in text for text in said)
