"""The decoding record of a run: trusted kinds of video, and clips that crashed a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssv2rt.core.recipes import Synthetic
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.synthetic import synthesize
from ssv2rt.pipelines.in_flight import InFlight, read_in_flight
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS

SETTINGS = [word for setting in (*TINY_SETTINGS, "train.epochs=2", "data.decoder=dali") for word in ("--set", setting)]
CRASH = """
import ctypes, os, sys
from ssv2rt.cli import main
from ssv2rt.pipelines.dali_graph import ClipGraph

feed, fed = ClipGraph.feed, []

def crash(self, clips):
    fed.append(0)
    if len(fed) == {at}:
        {how}
    feed(self, clips)

ClipGraph.feed = crash
sys.argv = ["ssv2rt", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    synthesize(folder, Synthetic(clips=60, width=64, height=48, frames=(16, 20)), key_frames="first", workers=1)
    return folder


def train_and_die(folder: Path, *arguments: str, how: str, at: int = 5) -> subprocess.CompletedProcess[str]:
    """Trains in a process of its own, which ends when it decodes its batch number `at`."""
    command = [sys.executable, "-c", CRASH.format(how=how, at=at), "train", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def decoder_facts(run: Run) -> dict[str, object]:
    return json.loads((run.path / "environment.json").read_text())["decoder"]


@pytest.mark.parametrize(
    ("how", "code"), [pytest.param("os.abort()", -6, marks=pytest.mark.slow), ("ctypes.string_at(0)", -11)]
)
def test_after_a_crash_pyav_decodes_the_clips_that_were_in_flight(
    data: Path, tmp_path: Path, how: str, code: int
) -> None:
    run = Run(tmp_path / "runs" / "r")
    died = train_and_die(
        tmp_path, "--data", str(data), "--name", "r", "--set", "train.checkpoint_minutes=0.0001", *SETTINGS, how=how
    )
    assert died.returncode == code, died.stderr
    (names,) = (run.path / "decoding").glob("in-hand-0-train.json")
    in_hand = read_in_flight(names)
    assert 8 <= len(in_hand) <= 16  # one batch or two
    resumed = ssv2rt("train", "--resume", "r", "--set", f"data.root='{data}'", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"the process crashed while DALI decoded {len(in_hand)} clips, such as '{in_hand[0]}'" in resumed.stderr
    facts = decoder_facts(run)
    assert facts["by_pyav"] == sorted(in_hand)
    kinds = facts["kinds"]
    assert isinstance(kinds, dict) and {about["counting"] for about in kinds.values()} == {"shown"}
    assert not (run.path / "decoding").exists()


def test_a_killed_process_does_not_blame_its_clips_and_keeps_trusted_kinds(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "r")
    died = train_and_die(
        tmp_path,
        *("--data", str(data), "--name", "r", "--set", "train.checkpoint_minutes=0.0001", *SETTINGS),
        how="os.kill(os.getpid(), 9)",
    )
    assert died.returncode == -9
    before = decoder_facts(run)
    assert before["kinds"] and not before["by_pyav"]
    resumed = ssv2rt("train", "--resume", "r", "--set", f"data.root='{data}'", cwd=tmp_path)
    assert resumed.returncode == 0 and "crashed" not in resumed.stderr
    after = decoder_facts(run)
    assert after["kinds"] == before["kinds"] and not after["by_pyav"]


def test_names_are_on_disk_while_their_batch_is_in_flight(tmp_path: Path) -> None:
    names = InFlight(tmp_path / "names.json")
    names.add(["a", "ü\udcff"])
    names.add(["c"])
    assert read_in_flight(tmp_path / "names.json") == ["a", "ü\udcff", "c"]
    names.done()
    names.add(["d"])
    assert read_in_flight(tmp_path / "names.json") == ["c", "d"]
    names.clear()
    names.add([])
    assert read_in_flight(tmp_path / "names.json") == []
    for damaged in (b"[1", b"{}", b"\xff"):
        (tmp_path / "names.json").write_bytes(damaged)
        assert read_in_flight(tmp_path / "names.json") == []
