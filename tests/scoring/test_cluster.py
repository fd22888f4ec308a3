"""A run on a Ray cluster gives what a run without one gives, whatever becomes of its machines."""

import csv
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.engines.bundle import Bundle
from ssv2rt.errors import UserError
from ssv2rt.scoring import parts
from ssv2rt.scoring.cluster import Cluster
from ssv2rt.scoring.journal import LAST, WINDOW, Journal, Row, named
from ssv2rt.scoring.machines import Slot, slot_for
from ssv2rt.scoring.parts import Parts
from ssv2rt.scoring.places import Video
from ssv2rt.scoring.processes import in_order
from ssv2rt.scoring.supervisor import Task
from ssv2rt.scoring.worker import WorkerSettings

REPOSITORY = Path(__file__).resolve().parents[2]
Nodes = Callable[..., Any]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster without nodes yet: `add_node(num_cpus=2)` starts the processes of one on this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets below it need short paths
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster()
    start = cluster.add_node
    cluster.add_node = lambda **more: start(**{"include_dashboard": False, "temp_dir": folder, **more})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        ray._private.utils.reset_ray_address()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def many(tiny_set: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A folder with so many videos, some of them broken."""

    def make(count: int) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        sources = sorted((tiny_set / "videos").iterdir())
        for number in range(count):
            os.link(sources[number % len(sources)], folder / f"{number}.webm")
        (folder / "broken.webm").write_bytes(b"junk")
        (folder / "no\udcfftext, \n.webm").write_bytes(sources[0].read_bytes()[:2000])
        return folder

    return make


def score(bundle: Bundle, inputs: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ssv2rt", "score", str(inputs), "--out", str(out), "--engine", str(bundle.path)]
    return subprocess.Popen(
        [*command, "--sort", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def end(process: subprocess.Popen[str], code: int) -> str:
    """What it said, when it has ended with this exit code."""
    try:
        said = "".join(process.communicate(timeout=300))
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said, said
    return said


def until(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > lines):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)


def test_it_is_as_a_run_without(tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    inputs = many(150)
    end(score(tiny_bundle, inputs, tmp_path / "alone.jsonl"), 3)
    said = end(score(tiny_bundle, inputs, tmp_path / "p.jsonl", "--cluster", "auto"), 3)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_bytes().splitlines()]
    (part,) = (tmp_path / "p.jsonl.parts").iterdir()
    kept = pq.read_table(part).to_pylist()
    assert sorted(row["video"] for row in kept) == sorted(row["video"] for row in rows) and len(rows) == 152
    about = [line for line in said.splitlines() if not line.startswith(("scoring: ", "out", "engine", "videos", "errors"))]
    assert about == ["no Ray cluster is running; starting one of this machine"]
    assert not [name for name in os.listdir("/tmp") if name.startswith("ssv2rt-") and "session_latest" in os.listdir(Path("/tmp", name))]
