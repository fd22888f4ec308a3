"""The command: what a user types, what comes back, and with which exit code."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssv2rt.core.run_folders import Run
from ssv2rt.engines.bundle import Bundle
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS

SETTINGS = [part for setting in TINY_SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_run: Run, tiny_bundle: Bundle) -> Path:
    """A folder with a run and its engine, as after `train` and `build-engine`."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_run.path.parent, folder / "runs", symlinks=True)
    return folder


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, ssv2rt.cli as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "score" in done.stdout and "build-engine" in done.stdout
    heavy = {"torch", "nvidia", "numpy", "onnx", "openvino", "av", "pyarrow", "pydantic", "rich"}
    assert not heavy & set(done.stderr.split())


def test_discovering_nothing_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, ssv2rt.cli as c\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "score", str(tmp_path), "--out", "p.csv"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "no videos in" in done.stderr


def test_the_whole_way(tmp_path: Path) -> None:
    """Synthesize, train, evaluate, build, score: as a user does it, on small data."""
    made = ssv2rt("synthesize", "data", "--clips", "80", "--size", "64x48", "--frames", "10-14", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    trained = ssv2rt("train", "--data", "data", *SETTINGS, "--json", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    run = json.loads(trained.stdout)["run"]
    assert os.path.basename(run).startswith(("small-", "ssv2-resnet3d18-"))
    evaluated = ssv2rt("evaluate", "--split", "test", "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["clips"] == 10
    built = ssv2rt("build-engine", "--fp16", "--json", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["verification"]["clips"] == 10
    scored = ssv2rt("score", "data/videos", "--out", "preds.csv", "--json", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["videos"] == 80
    with (tmp_path / "preds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80 and {row["status"] for row in rows} == {"ok"}


def test_a_dry_run_says_what_training_would_do(tmp_path: Path, tiny_set: Path) -> None:
    (tmp_path / "data").symlink_to(tiny_set)
    arguments = ["train", "--data", "data", *SETTINGS, "--set", "train.epochs=3", "--dry-run"]
    done = ssv2rt(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["training clips"] == 60 and plan["classes"] == 10
    assert (plan["optimizer steps per epoch"], plan["optimizer steps"]) == (8, 24)  # 60 clips in batches of 8
    assert plan["parameters"] > 100_000 and plan["GFLOP of a step, per clip"] > 0
    assert plan["GB of a step, without the allocator's own"] > 0
    assert plan["hours at least, at the rate of matrix products"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert "optimizer steps per epoch" in ssv2rt(*arguments, cwd=tmp_path).stdout
    bad = ssv2rt(*arguments, "--set", "train.batch_size=64", cwd=tmp_path)
    assert bad.returncode == 1 and "do not fill one update of 64 x 1 clips" in bad.stderr


def test_errors_in_the_videos_are_exit_code_3(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.webm").write_bytes(b"x")
    done = ssv2rt("score", tmp_path, "--out", tmp_path / "p.csv", "--json", cwd=workplace)
    assert done.returncode == 3
    assert json.loads(done.stdout)["errors"] == 1
    assert "error: unreadable" in (tmp_path / "p.csv").read_text()


CASES: list[tuple[list[str], int, str]] = [
    (["train", "demoo"], 2, "no recipe 'demoo'; did you mean 'demo'?"),
    (["train", "--set", "train.epoch=1"], 2, "'train.epoch' is not a setting; did you mean 'epochs'?"),
    (["train", "--set", "train.batch_size=0"], 2, "train.batch_size = 0"),
    (["train", "--data", "missing"], 2, "missing'; give --data"),
    (["train", "--data", "empty"], 1, "empty', which is empty; expected SSv2"),
    (["train", "--data", "foreign"], 1, "not SSv2's"),
    (["train", "--data", "fewer", *SETTINGS], 1, "train clips cannot be used"),
    (
        ["train", "--data", "tiny", *SETTINGS, "--set", "model.name=resnet3d19"],
        2,
        "no model 'resnet3d19'; did you mean",
    ),
    (["train", "--set", "train.optimizer=adam"], 2, "train.optimizer = 'adam': must be 'sgd' or 'adamw'"),
    (["train", "--set", "train.ema=2"], 2, "train.ema = 2"),
    (["train", "--set", "train.ema=-0.1"], 2, "must be greater than or equal to 0"),
    (["train", "--set", "train.accumulate=0"], 2, "train.accumulate = 0"),
    (["train", "--set", "train.warmup_epochs=99"], 2, "warmup_epochs = 99 is longer than the run of 7 epochs"),
    (["train", "--set", "train.learning_rate=nan"], 2, "must be a finite number"),
    (["train", "--set", "train.checkpoint_minutes=0"], 2, "train.checkpoint_minutes = 0"),
    (
        ["train", "--data", "tiny", *SETTINGS, "--set", "train.batch_size=64"],
        1,
        "do not fill one update of 64 x 1 clips",
    ),
    (["train", "--resume"], 1, "no run yet in 'runs/'"),
    (["train", "demo", "--resume", "x"], 2, "a run continues with its own recipe"),
    (["train", "--data", "tiny", *SETTINGS, "--init", "gone.pth"], 2, "gone.pth"),
    (["benchmark", "train", "--data", "tiny", "--set", "train.batch_size=64"], 1, "do not fill a batch of 64"),
    (["preview", "tiny", "--out", "p.jpg"], 2, "give a name that ends in .png"),
    (["preview", "y" * 300], 1, "File name too long; give another path"),
    (["evaluate"], 1, "no run yet in 'runs/'; make one with `ssv2rt train`"),
    (["build-engine", "--fp16"], 1, "no run yet"),
    (["build-engine", "--backend", "trt"], 2, "--backend trt: there are auto, tensorrt"),
    (["score", "tiny/videos", "--out", "p.csv"], 1, "no run yet"),
    (["score", "missing", "--out", "p.csv"], 2, "no file or folder 'missing'"),
    (["score", "empty", "--out", "p.csv"], 1, "no videos in 'empty'"),
    (["score", "tiny/videos", "--out", "p.xls"], 2, "the extension '.xls' is no format"),
    (["score", "tiny/videos"], 2, "Missing option '--out'"),
    (["score", "tiny/videos", "--out", "p.csv", "--timeout", "nan"], 2, "nan is not a number"),
    (["score", "tiny/videos", "--out", "p.csv", "--engine", "a", "--run", "b"], 1, "no run 'b'"),
    (["score", "tiny/videos", "--out", "p.csv", "--engine", "empty"], 1, "no engine bundle in 'empty'"),
    (["synthesize", "foreign"], 1, "'foreign' is not empty"),
    (["synthesize", "new", "--size", "big"], 2, "--size big: write it like 427x240"),
    (["synthesize", "new", "--clips", "31"], 2, "even number"),
    (["synthesize", "new", "--frames", "9-4"], 2, "swap the two"),
    (["scoer"], 2, "No such command 'scoer'"),
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """A folder with data of several kinds, and no run."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "labels.json").write_text('{"images": []}')
    shutil.copytree(tiny_set, folder / "tiny")
    shutil.copytree(tiny_set, folder / "fewer", ignore=shutil.ignore_patterns("manifest.parquet"))
    for path in sorted((folder / "fewer" / "videos").iterdir())[:40]:
        path.unlink()
    return folder


@pytest.mark.parametrize(("arguments", "code", "says"), CASES, ids=[" ".join(case[0][:4]) for case in CASES])
def test_bad_input_is_one_clear_line(bare: Path, arguments: list[str], code: int, says: str) -> None:
    done = ssv2rt(*arguments, cwd=bare)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and says in last
    assert not (bare / "runs").exists()  # nothing is left of what could not be done


def test_a_run_without_an_engine(workplace: Path, tmp_path: Path, tiny_set: Path) -> None:
    shutil.copytree(workplace / "runs", tmp_path / "runs", symlinks=True)
    shutil.rmtree(next((tmp_path / "runs").glob("tiny-*/engines")))
    done = ssv2rt("score", tiny_set / "videos", "--out", "p.csv", cwd=tmp_path)
    assert done.returncode == 1 and "has no engine yet; make one with `ssv2rt build-engine " in done.stderr


def test_top_k_is_at_most_the_number_of_classes(workplace: Path, tiny_set: Path) -> None:
    done = ssv2rt("score", tiny_set / "videos", "--out", "k.csv", "--top-k", "11", cwd=workplace)
    assert done.returncode == 2 and "--top-k 11: the engine has 10 classes" in done.stderr


def test_a_cpu_engine_shares_no_decoding_with_a_gpu(workplace: Path, tiny_set: Path) -> None:
    done = ssv2rt("score", tiny_set / "videos", "--out", "s.csv", "--cpu-share", "0.5", cwd=workplace)
    assert done.returncode == 2 and "--cpu-share 0.5: the engine is for a CPU" in done.stderr


def test_doctor_says_what_is_used_and_what_to_install() -> None:
    done = ssv2rt("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("gpu", "torch", "openvino", "decoder", "tensorrt"):
        assert word in done.stdout
    if shutil.which("nvidia-smi") is None:
        assert "ssv2rt[tensorrt]" in "".join(done.stdout.split())
    facts = json.loads(ssv2rt("doctor", "--json").stdout)
    assert facts["backends"]["openvino"] == "ready"
    assert facts["used"]["engines"] in ("openvino", "tensorrt")
    if facts["machine"]["gpu"] == "none":
        assert "pip install 'ssv2rt[tensorrt]'" in facts["backends"]["tensorrt"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_leaves_no_half_files(
    workplace: Path, tiny_set: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:

    many = tmp_path / "many"
    many.mkdir()
    sources = sorted((tiny_set / "videos").iterdir())
    for copy in range(400):
        shutil.copy(sources[copy % len(sources)], many / f"{copy}.webm")
    command = [sys.executable, "-m", "ssv2rt", "score", str(many), "--out", str(tmp_path / "p.csv")]
    process = subprocess.Popen(command, cwd=workplace, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    journal = tmp_path / "p.csv.journal"
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 20) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and b"go on with --resume" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "p.csv.journal"]
    again = ssv2rt("score", many, "--out", tmp_path / "p.csv", "--resume", "--json", cwd=workplace)
    assert again.returncode == 0 and json.loads(again.stdout)["videos"] == 400, again.stderr
    assert json.loads(again.stdout)["resumed after"] >= 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "p.csv", "p.csv.meta.json"]


def test_a_start_that_failed_leaves_its_name_free(tiny_set: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(tiny_set), "--name", "mine", *SETTINGS]
    hopeless = [*command, "--set", "train.learning_rate=1e30", "--set", "train.warmup_epochs=0"]
    failed = ssv2rt(*hopeless, cwd=tmp_path)
    assert failed.returncode == 1 and " is " in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "runs" / "mine").exists()
    done = ssv2rt(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "runs" / "mine" / "checkpoints" / "best" / "weights.safetensors"
    assert weights.stat().st_mode & 0o777 == (tmp_path / "runs" / "mine" / "recipe.toml").stat().st_mode & 0o777


WITHIN_IMPORT = """
import os, signal, sys
from importlib.machinery import ExtensionFileLoader
from ssv2rt import cli

def send(frame, event, argument):
    \"\"\"Sends the signal as soon as the library, which is being loaded, calls Python.\"\"\"
    while frame and event == "call" and "enum" in frame.f_globals["__name__"]:
        loading = frame = frame.f_back
        while loading and not isinstance(loading.f_locals.get("self"), ExtensionFileLoader):
            loading = loading.f_back
        if loading:
            sys.setprofile(None)
            os.kill(os.getpid(), int(sys.argv[1]))

def command(**options):
    sys.setprofile(send)
    import matplotlib.ft2font

cli.app = command
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_library_is_loaded_ends_the_process_without_a_crash(number: signal.Signals, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", WITHIN_IMPORT, str(int(number))], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "interrupted\n" if code == 130 else "terminated\n")
