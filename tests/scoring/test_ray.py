"""A run on a Ray cluster gives the same output as a local run, also when nodes and actors die."""

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

from ssv2rt.core.errors import UserError
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring import parquet_parts as parts
from ssv2rt.scoring.journal import Journal
from ssv2rt.scoring.parquet_parts import ParquetParts
from ssv2rt.scoring.ray_actor import rows_in_order
from ssv2rt.scoring.ray_backend import RayBackend
from ssv2rt.scoring.ray_nodes import ActorResources, resources_per_actor
from ssv2rt.scoring.row import IS_LAST, WINDOW, Row, named_row
from ssv2rt.scoring.supervisor import Task
from ssv2rt.scoring.video_sources import Video
from tests.cli import Done, ssv2rt
from tests.scoring.doubles import PREDICTION

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster without nodes. `add_node(num_cpus=2)` starts the processes of a node on this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets below it need short paths
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)  # where Ray notes its address, whatever its temp_dir is
    cluster = cluster_utils.Cluster()
    start = cluster.add_node
    cluster.add_node = lambda **more: start(**{"include_dashboard": False, "temp_dir": folder, **more})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def many(tiny_set: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder with the given number of videos, some of them broken."""

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
        [*command, "--sort", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def here(bundle: Bundle, inputs: Path, out: Path, *options: str) -> Done:
    """Scores on this machine, in this process."""
    return ssv2rt("score", inputs, "--out", out, "--engine", bundle.path, "--sort", *options)


def end(process: subprocess.Popen[str], code: int) -> str:
    """Waits for a process, checks its exit code, and returns its output."""
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


@pytest.mark.parametrize(
    ("cores", "gpu", "resources", "count"),
    [
        ([8, 8], False, ActorResources(False, 8), 2),
        ([64, 64], False, ActorResources(False, 16), 8),
        ([2, 64, 64], False, ActorResources(False, 16), 8),  # a small head node
        ([4, 10], False, ActorResources(False, 4), 3),
        ([2, 3], False, ActorResources(False, 3), 1),
        ([0, 1], False, ActorResources(False, 1), 1),
        ([0, 96, 8], True, ActorResources(True), 4),
    ],
)
def test_resources_per_actor(cores: list[int], gpu: bool, resources: ActorResources, count: int) -> None:
    ray_nodes = [{"Resources": {"CPU": float(c), "GPU": 4.0 * (c > 8)} if c else {}} for c in cores]
    assert resources_per_actor(gpu, ray_nodes) == resources and resources.count(ray_nodes) == count
    with pytest.raises(UserError, match="the cluster has no GPU, which the engine needs"):
        resources_per_actor(True, [{"Resources": {"CPU": 8.0}}])
    with pytest.raises(UserError, match="the cluster has no CPU"):
        resources_per_actor(False, [{"Resources": {}}])


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), max_size=6), st.randoms(use_true_random=False))
def test_rows_are_yielded_in_order_despite_crashes(windows: list[int], random: Any) -> None:
    """Restarted workers repeat the windows of unfinished videos, and rows of several videos are interleaved."""
    rows = {
        number: [{WINDOW: w, IS_LAST: w == count - 1} for w in range(count)] for number, count in enumerate(windows)
    }
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    left = {number: list(rows[number]) for number in rows}
    while left:
        number = random.choice(sorted(left))
        row = left[number].pop(0)
        answers.put((number, row))
        if row[IS_LAST]:
            del left[number]
        elif random.random() < 0.3:
            left[number] = list(rows[number])
    assert list(rows_in_order(list(rows), answers)) == [(number, row) for number in rows for row in rows[number]]


def test_parquet_parts_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_PART", 10)
    facts, out = {"engine": "abc"}, tmp_path / "p.csv"

    def write(journal: Journal, numbers: range) -> list[str]:
        follower = ParquetParts(out, ["video", "frames"], journal)
        for number in numbers:
            journal.write([named_row(f"{number}.webm", PREDICTION | {"frames": number})])
            follower.follow()
        if numbers.stop == 37:
            follower.end()
        journal.close()
        return sorted(file.name for file in (tmp_path / "p.csv.parts").iterdir())

    (tmp_path / "p.csv.parts").mkdir()
    (tmp_path / "p.csv.parts" / "part-00009.parquet").write_bytes(b"of an earlier run")
    assert write(Journal(tmp_path / "j", facts, resume=False), range(25)) == [f"part-0000{n}.parquet" for n in (0, 1)]
    for stale in ("part-00001.parquet", "part-00009.parquet"):
        (tmp_path / "p.csv.parts" / stale).write_bytes(b"of another run")
    assert write(Journal(tmp_path / "j", facts, resume=True), range(25, 37)) == [
        f"part-0000{n}.parquet" for n in range(4)
    ]
    table = pq.read_table(tmp_path / "p.csv.parts")
    assert table["frames"].to_pylist() == list(range(37)) and table.column_names == ["video", "frames"]


WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from ssv2rt.cli import main; main()"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--cluster", "nonsense"], 2, "--cluster nonsense: write HOST:PORT of the cluster's head, or auto"),
        (["--cluster", "ray://a:1"], 2, "--cluster ray://a:1: write HOST:PORT"),
        (["--cluster", "127.0.0.1:9"], 1, "--cluster 127.0.0.1:9: nothing answers there (Connection refused)"),
        (["--cluster", "auto", "--devices", "0"], 2, "--devices are those of this machine"),
    ],
)
def test_errors_are_one_line(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    pytest.importorskip("ray")
    done = here(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv", *options)
    assert done.returncode == code and says in done.stderr and not done.stdout
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path)


def test_ray_is_only_needed_for_a_cluster(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    video = next((tiny_set / "videos").iterdir())
    command = [sys.executable, "-c", WITHOUT_RAY, "score", video, "--engine", tiny_bundle.path, "--out"]
    done = subprocess.run([*command, tmp_path / "a.csv", "--cluster", "auto"], capture_output=True, text=True)
    assert done.returncode == 1 and "install it: pip install 'ssv2rt[cluster]'" in done.stderr
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path)
    assert subprocess.run([*command, tmp_path / "a.csv"], capture_output=True).returncode == 0


def test_run_on_a_cluster_equals_a_local_run(
    tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("TMPDIR", tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    inputs = many(150)
    assert here(tiny_bundle, inputs, tmp_path / "alone.jsonl").returncode == 3
    said = end(score(tiny_bundle, inputs, tmp_path / "p.jsonl", "--cluster", "auto"), 3)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_bytes().splitlines()]
    (part,) = (tmp_path / "p.jsonl.parts").iterdir()
    kept = pq.read_table(part).to_pylist()
    assert sorted(row["video"] for row in kept) == sorted(row["video"] for row in rows) and len(rows) == 152
    about = [line for line in said.splitlines() if "ray" in line.lower()]
    assert about == ["no Ray cluster is running; starting one on this machine"]
    assert not list(Path(os.environ["TMPDIR"]).glob("ssv2rt-ray-*"))
    shutil.rmtree(os.environ["TMPDIR"])


def processes_of(node: Any) -> list[int]:
    """Process ids of a node's actors, found by the process titles that Ray sets."""
    raylet = next(info.process.pid for name, infos in node.all_processes.items() if name == "raylet" for info in infos)
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == raylet and b"MapWorker" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_node_failure_loses_no_rows(
    nodes: Any, tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path
) -> None:
    inputs = many(2000)
    assert here(tiny_bundle, inputs, tmp_path / "alone.jsonl").returncode == 3
    nodes.add_node(num_cpus=2)
    other = nodes.add_node(num_cpus=2)
    process = score(tiny_bundle, inputs, tmp_path / "p.jsonl", "--cluster", nodes.address)
    until(tmp_path / "p.jsonl.journal", 300, process)
    assert len(processes_of(other)) == 1
    nodes.remove_node(other, allow_graceful=False)
    left = 2002 - (tmp_path / "p.jsonl.journal").read_bytes().count(b"\n")
    assert left > 500 and process.poll() is None
    said = end(process, 3)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes(), said
    assert "ray" not in said.replace(str(tmp_path), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--window", "0.4", "--hop", "0.1"], ["--logits", "--embeddings", "--views", "1x3"]]
)
def test_all_kinds_of_rows_equal_a_local_run(
    tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path, options: list[str]
) -> None:
    inputs = many(100)
    assert here(tiny_bundle, inputs, tmp_path / "alone.jsonl", *options).returncode == 3
    end(score(tiny_bundle, inputs, tmp_path / "p.jsonl", "--cluster", "auto", *options), 3)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    lines = (tmp_path / "p.jsonl").read_bytes().count(b"\n")
    assert pq.read_table(tmp_path / "p.jsonl.parts").num_rows == lines


@pytest.mark.slow
def test_resume_after_the_driver_is_killed(
    nodes: Any, tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path
) -> None:
    inputs, out = many(1200), tmp_path / "p.jsonl"
    assert here(tiny_bundle, inputs, tmp_path / "alone.jsonl").returncode == 3
    nodes.add_node(num_cpus=2)
    process = score(tiny_bundle, inputs, out, "--cluster", nodes.address)
    for lines in (200, 600):
        until(tmp_path / "p.jsonl.journal", lines, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        process = score(tiny_bundle, inputs, out, "--cluster", nodes.address, "--resume")
    end(process, 3)
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert pq.read_table(tmp_path / "p.jsonl.parts").num_rows == 1202


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "kill"])
def test_interrupted_run_can_be_resumed(
    tiny_bundle: Bundle, many: Callable[[int], Path], tmp_path: Path, how: str
) -> None:
    inputs, out = many(1200), tmp_path / "p.jsonl"
    process = score(tiny_bundle, inputs, out, "--cluster", "auto")
    until(tmp_path / "p.jsonl.journal", 100, process)
    if how == "Ctrl-C":  # a terminal signals the whole process group
        os.killpg(process.pid, signal.SIGINT)
        said = end(process, 130)
    else:
        process.terminate()
        said = end(process, 143)
    assert "videos are scored and kept in" in said and not out.exists()
    assert here(tiny_bundle, inputs, out, "--resume").returncode == 3  # without a cluster
    assert out.read_bytes().count(b"\n") == 1202


def deadly(names: list[str], nodes: Any, during: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """Scores videos with the `Deadly` test double on the cluster. Returns the status of each."""
    settings = WorkerSettings("tests.scoring.doubles:Deadly", {})
    tasks: list[Task] = [(number, Video.at(name)) for number, name in enumerate(names)]
    rows: list[tuple[int, Row]] = []
    with RayBackend(nodes.address, settings, bundle=None, batch=8, timeout=20) as cluster:
        for answer in cluster.score(iter(tasks)):
            rows += answer
            during(len(rows))
    assert sorted(number for number, _ in rows) == list(range(len(names))), "one row each"
    return {row["path"]: row["status"] for _, row in rows}


@pytest.mark.slow
def test_crashing_videos_are_isolated_on_a_cluster(nodes: Any) -> None:
    names = [f"{number}.webm" for number in range(3000)]
    bad = {"abort.webm", "segfault.webm", "kill.webm", "exit.webm"}
    for place, name in enumerate(bad):
        names.insert(500 * place + 3, name)
    nodes.add_node(num_cpus=2)
    other = nodes.add_node(num_cpus=2)
    gone = []

    def kill(rows: int) -> None:
        if rows > 400 and not gone:
            (actor,) = processes_of(other)
            os.kill(actor, signal.SIGKILL)  # the parent of the worker
            gone.append(actor)

    found = deadly(names, nodes, kill)
    assert gone and {found.pop(name) for name in bad} == {"error: decoder crashed"} and set(found.values()) == {"ok"}


@pytest.mark.slow
def test_nodes_with_another_version_are_refused(
    nodes: Any, tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.add_node(num_cpus=2)
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "ssv2rt", other / "ssv2rt")
    (other / "ssv2rt" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    monkeypatch.setenv("PYTHONPATH", str(other))
    nodes.add_node(num_cpus=2)
    ours = f"import sys; sys.path.insert(0, '{REPOSITORY}'); from ssv2rt.cli import main; main()"
    command = [sys.executable, "-c", ours, "score", tiny_set / "videos", "--engine", tiny_bundle.path]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "p.csv", "--cluster", nodes.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    said = end(process, 1)
    assert "has ssv2rt 0.0.1, and this one" in said and said.count("\n") == 1
    assert not (tmp_path / "p.csv.journal").exists()


@pytest.mark.slow
def test_errors_that_no_video_caused_end_the_run(nodes: Any) -> None:
    nodes.add_node(num_cpus=2)
    for name, says in (("Refusing", "the engine is for another machine"), ("Stillborn", "ends before it has begun")):
        settings = WorkerSettings(f"tests.scoring.doubles:{name}", {})
        with (
            RayBackend(nodes.address, settings, bundle=None, batch=8, timeout=60) as cluster,
            pytest.raises(UserError, match=says),
        ):
            list(cluster.score(iter([(0, Video.at("a.webm"))])))
    with pytest.raises(UserError, match="the storage is gone"):
        deadly([f"{number}.webm" for number in range(300)] + ["storage.webm"], nodes)


@pytest.mark.slow
def test_attempts_at_a_pack_that_kills_actors_are_limited(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssv2rt.scoring.ray_backend._MAX_ATTEMPTS", 3)
    nodes.add_node(num_cpus=2)
    with pytest.raises(UserError, match="the 2 videos from 'a.webm' to 'parent.webm' have ended Ray's process 3 times"):
        deadly(["a.webm", "parent.webm"], nodes)
