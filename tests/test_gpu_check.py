"""scripts/gpu_check.py on a machine without a GPU: what a dry run finds, and that its steps survive each other."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"


def run(
    *arguments: object, seconds: float = 120, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)


def findings(process: subprocess.CompletedProcess[str], out: Path) -> dict[str, dict[str, Any]]:
    """What each step found, by the name of the finding. Stdout and the file tell the same."""
    assert out.read_text(encoding="utf-8") == process.stdout, process.stderr
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, process.stdout.splitlines()):
        found.setdefault(line["step"], {})[line["finding"]] = line
    return found


def test_a_dry_run_tells_the_machine_and_its_frames(tmp_path: Path) -> None:
    done = run(SCRIPT, "--dry-run", "--only", "machine,frames", "--out", tmp_path / "found.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done, tmp_path / "found.jsonl")
    assert list(found) == ["machine", "frames"] and all("end" in step for step in found.values())
    assert "h264 1 8" in found["machine"]["NVDEC"]["codec_chroma_bits"]
    frames, count = found["frames"], found["frames"]["clip"]["frames"]
    assert frames["clip"]["kind"].endswith("hidden") and frames["clip"]["pictures"] > count
    for name in ("whole file", "handed over, shown pictures counted"):
        assert frames[name]["right"] == f"{count} of {count}" and max(frames[name]["off_by"]) < 3, name
    # DALI's CPU decoder counts what is shown, and gives black pictures for what is not there.
    assert frames["handed over, decoded pictures counted"]["right"] != f"{count} of {count}"
    assert frames[f"whole file, at {count}"]["black"] == [0]


FAULTY = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import gpu_check

def abort(check):
    check.found("before")
    print("assertion in NVIDIA's parser", file=sys.stderr, flush=True)
    os.abort()

def one_of_three(check):
    for name in ("first", "second", "third"):
        if name not in check.ran:
            check.found(gpu_check.BEGINS, name=name)
            if name == "second":
                os.abort()
            check.found("test " + name)

def error(check):
    with check.part("a part of it"):
        raise ValueError("made on purpose")
    check.found("after the part")
    raise RuntimeError("made on purpose")

gpu_check.STEPS = {
    "abort": (abort, 20),
    "hang": (lambda check: time.sleep(3600), 1),
    "tests": (one_of_three, 20),
    "error": (error, 20),
    "fine": (lambda check: check.found("reached"), 20),
    "long": (lambda check: check.found("reached"), 3600),
}
sys.exit(gpu_check.main())
"""


def test_steps_that_crash_hang_and_fail_cost_themselves_only(tmp_path: Path) -> None:
    names, out = "abort,hang,tests,error,long,fine", tmp_path / "found.jsonl"
    done = run("-c", FAULTY, SCRIPT.parent, "--only", names, "--out", out, "--minutes", 2)
    assert done.returncode == 1, done.stdout + done.stderr
    found = findings(done, out)
    assert list(found["abort"]) == ["before", "end"] and found["abort"]["end"]["failed"] == "exit code -6"
    assert "assertion in NVIDIA's parser" in found["abort"]["end"]["said"]
    assert any("abort(check)" in row or "in abort" in row for row in found["abort"]["end"]["said"])  # its stack
    assert found["hang"]["end"]["failed"] == "stopped after 1 seconds"
    assert any("in <lambda>" in row for row in found["hang"]["end"]["said"])
    assert list(found["tests"]) == ["test first", "crash", "test third", "end"]
    assert found["tests"]["crash"]["name"] == "second" and "failed" not in found["tests"]["end"]
    assert (
        found["error"]["a part of it"]["failed"] == "ValueError: made on purpose" and "after the part" in found["error"]
    )
    assert found["error"]["end"]["said"][-1] == "RuntimeError: made on purpose"
    assert list(found["long"]) == ["left out"] and list(found["fine"]) == ["reached", "end"]
    wrong = run(SCRIPT, "--only", "frame")
    assert wrong.returncode == 2 and "--only frame: there is no such step" in wrong.stderr


def test_without_a_gpu_it_ends_after_the_first_step(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    done = run(SCRIPT, "--only", "machine,frames,cache", "--out", out, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    found = findings(done, out)
    assert done.returncode == 1 and list(found) == ["machine", "frames"] and list(found["frames"]) == ["left out"]
    assert found["machine"]["packages"]["versions"]["torch"] and "end" in found["machine"]


def test_each_test_marked_gpu_is_in_one_step() -> None:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    chosen = [path for folder in script.FOLDERS for path in script.gpu_tests(folder)]
    assert sorted(chosen) == script.gpu_tests(".") and all(script.gpu_tests(folder) for folder in script.FOLDERS)


@pytest.mark.slow
def test_a_dry_run_runs_everything(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    done = run(SCRIPT, "--dry-run", "--minutes", 10, "--out", out, seconds=700)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done, out)
    assert all("end" in step for step in found.values()) and len(found) == 20
    assert found["race"]["race"]["same"] == "14 of 14"
    decisions = [step["decisions"] for name, step in found["trust"].items() if name != "end"]
    assert sum(len(some) for some in decisions) == 3  # kinds that DALI's CPU decoder takes
    for name in ("train-112", "train-224", "score", "engine", "peers"):
        assert found[name]["benchmark"]["command"]
    assert all("test" in found[f"tests-{folder}"] for folder in ("pipelines", "training", "engines"))
