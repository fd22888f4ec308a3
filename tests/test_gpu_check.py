"""The check of the GPU path, run on whatever machine this is: it ends, says what it found, and survives its own sections."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"


def run(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=seconds)


def report_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("quick")
    return run("--quick", "--sections", "machine,pipeline", "--out", str(folder)), folder


def test_sections_are_listed_and_wrong_names_refused() -> None:
    listed = run("--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        *("machine", "videos", "decode", "pipeline", "model", "training", "engines", "scoring", "tests")
    ]
    wrong = run("--sections", "modell")
    assert wrong.returncode == 2 and "no section 'modell'" in wrong.stderr


def test_a_quick_check_says_what_it_found(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, folder = quick
    assert process.returncode == 0, process.stdout + process.stderr
    report = report_in(folder)
    assert report["passed"] and report["quick"] and list(report["sections"]) == ["machine", "videos", "pipeline"]
    machine, pipeline = report["sections"]["machine"], report["sections"]["pipeline"]
    assert machine["facts"]["cores"] > 0 and {row["package"] for row in machine["tables"]["packages"]} >= {
        "torch",
        "av",
    }
    assert [part["status"] for part in pipeline["parts"].values()] == ["passed"] * 3
    assert all(check["passed"] for check in pipeline["checks"]) and len(pipeline["checks"]) > 20
    assert all(row["clips_per_second"] > 0 for row in pipeline["tables"]["stages"])


def test_its_markdown_has_a_table_for_each_section(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = quick
    text = (folder / "gpu_check.md").read_text(encoding="utf-8")
    for title in ("# GPU check", "## machine:", "## videos:", "## pipeline:", "**stages**"):
        assert title in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({row.replace("\\|", "").count("|") for row in table}) == 1 and set(table[1]) <= set("|-:")


def test_a_dry_run_takes_no_gpu(tmp_path: Path) -> None:
    process = run("--dry-run", "--sections", "machine", "--out", str(tmp_path))
    assert process.returncode == 0, process.stdout + process.stderr
    report = report_in(tmp_path)
    parts = report["sections"]["machine"]["parts"]
    assert report["dry_run"] and report["quick"] and parts["gpu"]["status"] == parts["nvdec"]["status"] == "missing"
    assert parts["misfits"]["status"] == parts["matrix products"]["status"] == "passed"


@pytest.mark.slow
def test_a_dry_run_runs_all_that_needs_no_gpu(tmp_path: Path) -> None:
    process = run("--dry-run", "--out", str(tmp_path), seconds=900)
    assert process.returncode == 0, process.stdout + process.stderr
    sections = report_in(tmp_path)["sections"]
    states = {
        (name, part): state["status"] for name, found in sections.items() for part, state in found["parts"].items()
    }
    missing = {("machine", "gpu"), ("machine", "nvdec"), ("training", "what waits"), ("tests", "pytest -m gpu")}
    missing |= {("engines", "tensorrt"), ("engines", "tensorrt-rtx")}
    assert {place for place, state in states.items() if state == "missing"} == missing
    assert {state for place, state in states.items() if place not in missing} == {"passed"}


WITHOUT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules |= dict.fromkeys(("av", "nvidia.dali", "pyarrow", "onnx", "openvino", "rich", "tomlkit", "torchmetrics"))
from gpu_check.record import Record
from gpu_check import model
from pathlib import Path
record = Record(Path(sys.argv[2]) / "found.jsonl", work=Path(sys.argv[2]), quick=True)
record.begin("model", 20)
model.normalising(record)
model.resnet18_small(record)
"""


def test_networks_are_measured_with_hardly_a_package(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "found.jsonl").read_text(encoding="utf-8")
    assert '"clips_per_second"' in found and '"kind": "missing"' not in found


def test_an_error_a_crash_and_a_hang_hide_nothing(tmp_path: Path) -> None:
    process = run("--quick", "--sections", "injected,machine", "--out", str(tmp_path))
    assert process.returncode == 1
    sections = report_in(tmp_path)["sections"]
    injected = sections["injected"]
    assert {name: part["status"] for name, part in injected["parts"].items()} == {
        "before": "passed",
        "error": "failed",
        "missing": "missing",
        "broken": "failed",
        "crash": "crashed",
        "hang": "timed out",
        "after": "passed",
    }
    assert "SIGSEGV" in injected["parts"]["crash"]["error"] and "at sleeping" in injected["parts"]["hang"]["error"]
    assert injected["tables"]["kept"] == [{"what": "what came before the hang"}]
    assert injected["facts"]["crash: kept"] == "what came before the crash"
    assert [missing["what"] for missing in injected["missing"]] == ["no_such_package_as_this"]
    assert any("injected.py" in line for line in injected["log"])  # where it hung
    assert sections["machine"]["status"] == "passed"  # the next section had its turn
    assert "FAILED injected: crash" in process.stdout


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    process = run("--sections", "model", "--out", str(tmp_path), "--budget", "0.5")
    assert process.returncode == 0
    (section,) = report_in(tmp_path)["sections"].values()
    assert section["status"] == "left out" and len(section["parts"]) == 7
