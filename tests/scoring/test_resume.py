"""An interrupted scoring run can be resumed, and then gives the same output as an uninterrupted one."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring import run
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.row import named_row
from tests.cli import Done, ssv2rt

FACTS = {"engine": "abc", "top_k": 1}


def row(number: int) -> dict[str, object]:
    return named_row(f"{number}.webm", {"status": "ok", "probability": number / 7})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 12), st.integers(0, 2000), st.binary(max_size=30))
def test_truncated_journal_resumes_after_its_last_complete_line(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cut: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("j") / "p.csv.journal"
    journal = Journal(path, FACTS, resume=False)
    journal.write([row(number) for number in range(rows)])
    journal.close()
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    path.write_bytes(whole[: max(head, len(whole) - cut)] + junk.replace(b"\n", b""))
    again = Journal(path, FACTS, resume=True)
    kept = again.videos
    assert kept <= rows and all(f"{number}.webm" in again.seen for number in range(kept))
    assert f"{kept}.webm" not in again.seen
    again.write([row(number) for number in range(kept, rows)])
    again.close()
    assert path.read_bytes() == whole and list(read_rows(path)) == [row(number) for number in range(rows)]


def test_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv.journal"
    Journal(path, FACTS, resume=False).close()
    with pytest.raises(UserError, match=r'started with another engine: "abc", and now it is "xyz"'):
        Journal(path, {**FACTS, "engine": "xyz"}, resume=True)
    for content in (b"text\n", b"\0\xff", b'{"x'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a journal"):
            Journal(path, FACTS, resume=True)
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is not a journal of ssv2rt"):
        Journal(path, FACTS, resume=True)


def test_journal_is_locked(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", FACTS, resume=False)
    journal.write([row(0)])
    for resume in (False, True):
        with pytest.raises(UserError, match="another process is writing"):
            Journal(tmp_path / "j", FACTS, resume=resume)
    journal.write([row(1)])
    journal.close()
    assert Journal(tmp_path / "j", FACTS, resume=True).videos == 2


def score(bundle: Bundle, inputs: Path, out: Path, *options: object) -> Done:
    return ssv2rt("score", inputs, "--out", out, "--engine", bundle.path, "--sort", *options)


def start(bundle: Bundle, inputs: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """The same as a process, to be killed."""
    command = [sys.executable, "-m", "ssv2rt", "score", str(inputs), "--out", str(out), "--engine", str(bundle.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, "--sort", *options], start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def kill_at_random_times(bundle: Bundle, inputs: Path, folder: Path, times: int) -> int:
    """Kills a run's process group at random times and resumes it, until it finishes. Returns the number of kills."""
    generator = random.Random(1)
    for killed in range(times + 20):
        process = start(bundle, inputs, folder / "p.csv", *(["--resume"] if killed else []))
        journal = folder / "p.csv.journal"
        before = journal.stat().st_size if journal.is_file() else 0
        limit = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < limit:
            if killed < times and journal.is_file() and journal.stat().st_size > before:
                time.sleep(generator.random() * 0.1)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL
    raise AssertionError("it never ended")


@pytest.mark.parametrize("times", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_resumed_run_gives_the_same_output(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, times: int
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    sources = sorted((tiny_set / "videos").iterdir())
    for number in range(60 if times < 10 else 600):
        os.link(sources[number % len(sources)], inputs / f"{number}.webm")
    (inputs / "bad.webm").write_bytes(b"junk")
    whole = score(tiny_bundle, inputs, tmp_path / "whole.csv")
    assert whole.returncode == 3, whole.stderr
    (inputs / "bad.webm").unlink()
    assert score(tiny_bundle, inputs, tmp_path / "whole.csv", "--overwrite").returncode == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    assert (
        kill_at_random_times(tiny_bundle, inputs, folder, times) >= times // 2
    )  # a run may finish before it is killed
    assert (folder / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert os.listdir(folder) == ["p.csv"]


def test_resume_after_a_kill_between_output_and_journal_removal(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path
) -> None:
    code = (
        "import os, pathlib, sys; from ssv2rt.scoring import run;"
        "unlink = pathlib.Path.unlink;"
        "pathlib.Path.unlink = lambda p, *a, **k: os._exit(9) if p.suffix == '.journal' else unlink(p, *a, **k);"
        "sys.argv = ['ssv2rt', *sys.argv[1:]]; from ssv2rt.cli import main; main()"
    )
    out = tmp_path / "p.csv"
    arguments = ["score", str(tiny_set / "videos"), "--out", str(out), "--engine", str(tiny_bundle.path)]
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 9
    whole = out.read_bytes()
    assert score(tiny_bundle, tiny_set / "videos", out).returncode == 2 and out.read_bytes() == whole
    done = score(tiny_bundle, tiny_set / "videos", out, "--resume", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["resumed after"] == 80
    assert os.listdir(tmp_path) == ["p.csv"] and sorted(out.read_bytes().split()) == sorted(whole.split())
    done = score(tiny_bundle, tiny_set / "videos", out, "--resume", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["left"] == 0 and "nothing is left to score" in done.stderr


def test_existing_journal_needs_resume_or_overwrite(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv.journal").write_text(json.dumps({"ssv2rt": 1}) + "\n")
    done = score(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv")
    assert done.returncode == 2 and "add --resume to go on with it, or --overwrite to begin anew" in done.stderr
    done = score(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv", "--overwrite")
    assert done.returncode == 0 and os.listdir(tmp_path) == ["p.csv"]


def test_run_without_rows_leaves_no_journal(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """An empty journal would make the next run fail."""
    done = ssv2rt("score", "-", "--out", "p.csv", "--engine", tiny_bundle.path, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Error: no videos in '-'") and not os.listdir(tmp_path)


def test_closed_stdin_stdout_and_stderr(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    """Files that are opened must not get the file descriptors 0 to 2."""
    video = min((tiny_set / "videos").iterdir())
    command = f"'{sys.executable}' -m ssv2rt score '{video}' --out p.csv --engine '{tiny_bundle.path}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert os.listdir(tmp_path) == ["p.csv"] and (tmp_path / "p.csv").read_text().count("\n") == 2


def test_resume_with_other_inputs_keeps_old_rows(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of earlier inputs are kept, with a warning."""
    first, second = sorted((tiny_set / "videos").iterdir())[:2]
    facts = begun_with(tiny_bundle, first, tmp_path, monkeypatch)
    journal = Journal(tmp_path / "p.csv.journal", facts, resume=False)
    journal.write([named_row(str(first), {"status": "ok"}), named_row("gone.webm", {"status": "ok"})])
    journal.close()
    done = score(tiny_bundle, second, tmp_path / "p.csv", "--resume", first)
    assert done.returncode == 0
    assert "1 videos that an earlier call has scored are not among the inputs" in done.stderr
    assert (tmp_path / "p.csv").read_bytes().count(b"\n") == 4


def begun_with(bundle: Bundle, video: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The first line of the journal of a run, read before its first row."""
    found: list[dict[str, object]] = []

    def read_and_stop(*_: object) -> None:
        found.append(json.loads((folder / "p.csv.journal").read_text()))
        raise UserError("stopped on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(run, "_score", read_and_stop)
        assert "stopped on purpose" in score(bundle, video, folder / "p.csv").stderr
    (facts,) = found
    del facts["ssv2rt"]
    return facts


def test_full_disk_keeps_scored_rows(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    """The full disk is simulated by a limit on file sizes."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY));"
        "sys.argv = ['ssv2rt', *sys.argv[1:]]; from ssv2rt.cli import main; main()"
    )
    arguments = ["score", str(tiny_set / "videos"), "--out", str(tmp_path / "p.csv"), "--engine", str(tiny_bundle.path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "make room, and go on with --resume" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "p.csv").exists()
    kept = len(list(read_rows(tmp_path / "p.csv.journal")))
    done = score(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv", "--resume", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["videos"] == 80 and kept > 0
