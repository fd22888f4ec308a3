"""Fault injection: after a kill, a full disk, too many open files or lost storage, the scored rows are kept."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.row import named_row
from ssv2rt.scoring.storage_watch import StorageWatch
from ssv2rt.scoring.video_sources import Video

VIDEOS = 24


def run(out: Path, inputs: Path | str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tests.scoring.faulty",
        json.dumps({"out": str(out), "inputs": [str(inputs)], **settings}),
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for number in range(VIDEOS):
        (folder / f"{number}.webm").touch()
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The output of an undisturbed run, and the number of moments at which it can be killed."""
    out = tmp_path_factory.mktemp("whole") / "p.csv"
    done = run(out, inputs)
    assert done.returncode == 0, done.stderr
    return out.read_bytes(), json.loads(done.stdout)["moments"]


def killed_at(moment: int, inputs: Path, whole: bytes, folder: Path) -> None:
    out = folder / f"{moment}" / "p.csv"
    out.parent.mkdir()
    killed = run(out, inputs, kill_at=moment)
    # A slow run syncs its journal more often, and so has a few more moments than a fast one.
    quick = killed.returncode == 0 and json.loads(killed.stdout)["moments"] < moment
    assert quick or killed.returncode == -9
    if out.exists():
        assert out.read_bytes() == whole, "an output is whole or is not there"
    if out.exists() and not out.with_name("p.csv.journal").exists():
        return  # it had finished before
    done = run(out, inputs, resume=True)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole and json.loads(done.stdout)["videos"] == VIDEOS
    assert os.listdir(out.parent) == ["p.csv"]


@pytest.mark.parametrize("tenth", range(10))
def test_resume_after_a_kill_at_a_write(tenth: int, inputs: Path, whole: tuple[bytes, int], tmp_path: Path) -> None:
    content, moments = whole
    assert moments > 40
    killed_at(1 + tenth * (moments - 1) // 9, inputs, content, tmp_path)


@pytest.mark.slow
def test_resume_after_a_kill_at_every_write(inputs: Path, whole: tuple[bytes, int], tmp_path: Path) -> None:
    for moment in range(1, whole[1] + 1):
        killed_at(moment, inputs, whole[0], tmp_path)


def test_full_disk_while_writing_the_journal(inputs: Path, whole: tuple[bytes, int], tmp_path: Path) -> None:
    done = run(tmp_path / "p.csv", inputs, bytes=900)
    assert done.returncode == 1 and "make room, and go on with --resume" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run(tmp_path / "p.csv", inputs, resume=True)
    assert done.returncode == 0 and (tmp_path / "p.csv").read_bytes() == whole[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("file systems may not be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_resume_after_a_full_disk(inputs: Path, whole: tuple[bytes, int], small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(12 << 10))
    done = run(small_disk / "p.csv", inputs)
    assert done.returncode == 1 and "No space left on device; " in done.stderr and "go on with --resume" in done.stderr
    (small_disk / "other").unlink()
    done = run(small_disk / "p.csv", inputs, resume=True)
    assert done.returncode == 0, done.stderr
    assert (small_disk / "p.csv").read_bytes() == whole[0]


def test_unwritable_output_is_an_error(inputs: Path) -> None:
    done = run(Path("/proc/p.csv"), inputs)
    assert done.returncode == 1 and "cannot write '/proc/p.csv.journal'" in done.stderr


def test_resume_after_too_many_open_files(inputs: Path, whole: tuple[bytes, int], tmp_path: Path) -> None:
    done = run(tmp_path / "p.csv", inputs, double="Starved", options={"videos": 1})
    assert done.returncode == 1 and "Too many open files" in done.stderr and "go on with --resume" in done.stderr
    assert run(tmp_path / "p.csv", inputs, resume=True).returncode == 0
    assert (tmp_path / "p.csv").read_bytes() == whole[0]


@pytest.mark.parametrize("how", ["small", "large", "windows"])
def test_too_many_open_files_end_the_run_instead_of_giving_error_rows(
    tiny_bundle: Bundle, tiny_set: Path, how: str
) -> None:
    """The real scorer, without a free file descriptor."""
    code = (
        "import os, resource, sys; from pathlib import Path;"
        "from ssv2rt.engines.bundle import open_bundle; from ssv2rt.core.recipes import Data;"
        "from ssv2rt.scoring.predictor import Predictor; from ssv2rt.scoring.video_sources import Video;"
        "from ssv2rt.scoring.scorer import Scorer; from ssv2rt.scoring.segments import Windows;"
        "from ssv2rt.scoring.window_scorer import WindowScorer; import ssv2rt.video.decode;"
        "from ssv2rt.pipelines import prefetch;"
        "bundle = open_bundle(Path(sys.argv[1])); clip = bundle.info.clip; predictor = Predictor(bundle, top_k=1);"
        "prefetch.LARGE = 0 if sys.argv[3] == 'large' else prefetch.LARGE;"
        "windows = WindowScorer(predictor, data=Data(), clip=clip, windows=Windows(2.0, 1.0));"
        "scorer = windows if sys.argv[3] == 'windows' else Scorer(predictor, data=Data(), clip=clip);"
        "tasks = [(n, Video(str(p), p)) for n, p in enumerate(sorted(Path(sys.argv[2]).iterdir()))];"
        "spare = os.open('/dev/null', os.O_RDONLY); resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, spare + 1));"
        "print([row['status'] for rows in scorer.score([[task] for task in tasks[:4]]) for _, row in rows])"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle.path), str(tiny_set / "videos"), how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Too many open files" in done.stderr and "`ulimit -n`" in done.stderr


@pytest.mark.parametrize("how", ["gone", "empty", "empty below", "tar"])
def test_storage_that_goes_offline_ends_the_run(
    whole: tuple[bytes, int], inputs: Path, tmp_path: Path, how: str
) -> None:
    """Also where a file system that was mounted leaves an empty folder, at an input or below it."""
    root = tmp_path / "mounted"
    place = {"tar": root, "empty below": root / "below"}.get(how, root)
    given = root / "all.tar" if how == "tar" else root
    if how == "tar":
        root.mkdir()
        with tarfile.open(given, "w") as archive:
            archive.add(inputs, ".")
    else:
        shutil.copytree(inputs, place)
    if how == "empty below":
        (root / "another").mkdir()
    settings = {"out": str(tmp_path / "p.csv"), "inputs": [str(given)], "double": "Slow", "options": {"videos": 1}}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.scoring.faulty", json.dumps(settings)], stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "p.csv.journal"
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    place.rename(tmp_path / "elsewhere")
    if how != "gone":
        place.mkdir()
    _, said = process.communicate()
    says = {"gone": "' is gone (No such file or directory); ", "tar": "' is gone, and had videos before; "}
    assert process.returncode == 1 and says.get(how, "' is empty now, and had videos before; ") in said
    assert "bring it back, and go on with --resume" in said and b"missing" not in journal.read_bytes()
    shutil.rmtree(place, ignore_errors=True)
    (tmp_path / "elsewhere").rename(place)
    done = run(tmp_path / "p.csv", given, resume=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["videos"] == VIDEOS and b"missing" not in (tmp_path / "p.csv").read_bytes()


def test_a_video_that_is_deleted_is_missing(inputs: Path, tmp_path: Path) -> None:
    """So is one that a list names in vain, and one whose folder was deleted beside others."""
    for name in ("a", "b"):
        shutil.copytree(inputs, tmp_path / "in" / name)
    names = [tmp_path / "in/a/3.webm", tmp_path / "in/b/7.webm", tmp_path / "never/x.webm"]
    watch = StorageWatch([])
    assert len(list(watch.noting([Video.at(str(name)) for name in names]))) == 3
    names[0].unlink()
    shutil.rmtree(tmp_path / "in" / "b")
    watch.check([named_row(str(name), {"status": "error: missing"}) for name in names])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path: Path) -> None:
    """Peak memory for 1,000,000 names is within 10 % of that for 1,000."""
    taken = {}
    for count in (1_000, 1_000_000):
        names = tmp_path / f"{count}.txt"
        with names.open("w") as file:
            file.writelines(f"/somewhere/clips/{number}.webm\n" for number in range(count))
        done = run(tmp_path / f"{count}.csv", f"@{names}", options={"videos": 32}, workers=2)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["videos"] == count
        taken[count] = facts["MiB"]
    assert taken[1_000_000] < 1.1 * taken[1_000], taken
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
