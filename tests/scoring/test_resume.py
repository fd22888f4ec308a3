"""An interrupted scoring run can be resumed, and then gives the same output as an uninterrupted one."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import INFO, Bundle
from ssv2rt.scoring import run
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.merge import read_output
from ssv2rt.scoring.row import columns, named_row
from ssv2rt.scoring.run import Output, _write
from ssv2rt.scoring.segments import Windows
from tests.cli import Done, ssv2rt

FACTS = {"engine": "abc", "top_k": 1}
OUTPUTS = ["p.csv", "p.csv.meta.json"]
"""What is left of a run that is complete."""


def row(number: int) -> dict[str, object]:
    return named_row(f"{number}.webm", {"status": "ok", "label": "a", "probability": number / 7})


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


_VALUES = st.sampled_from(
    [
        None,
        True,
        3,
        -1,
        2.5,
        float("nan"),
        10**30,
        "",
        "ok",
        "\ud800.webm",
        "0.webm",
        "a\nb.webm",
        [],
        {},
        {"float32": "AAA"},
    ]
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_rows_of_a_hostile_journal_are_ignored_or_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever stands in a journal: it is refused, or the output has exactly one whole row for each video."""
    folder = tmp_path_factory.mktemp("j")
    path, windows = folder / "p.csv.journal", data.draw(st.booleans())
    extra = {"label": "a", "start": 0.0, "end": 1.0} if windows else {"label": "a", "logits": np.ones(2, np.float32)}
    wanted = [{**row(number), **extra} for number in range(6)]
    with contextlib.closing(Journal(path, FACTS, windows=windows)) as journal:
        journal.write(wanted)
    lines = path.read_bytes().splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["bytes", "value", "lacking", "twice", "swapped"]))
        with contextlib.suppress(ValueError, AttributeError):
            if kind == "bytes":
                cut = data.draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut] + data.draw(st.binary(max_size=8)) + lines[at][cut + 1 :]
            elif kind == "twice":
                lines.insert(at, lines[data.draw(st.integers(0, len(lines) - 1))])
            elif kind == "swapped":
                lines[at], lines[-1] = lines[-1], lines[at]
            else:
                value = json.loads(lines[at])
                key = data.draw(st.sampled_from([*value, "window", "last", "frames", "ssv2rt"]))
                value.pop(key, None)
                if kind == "value":
                    value[key] = data.draw(_VALUES)
                lines[at] = json.dumps(value).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    try:
        journal = Journal(path, FACTS, resume=True, windows=windows)
    except UserError:
        return
    with contextlib.closing(journal):
        journal.write([one for one in wanted if one["path"] not in journal.seen])
    names = columns(1, windows=windows, merged=windows, extra_columns=[] if windows else ["logits"])
    for suffix in (".csv", ".jsonl", ".parquet"):
        output = Output(folder / f"p{suffix}", names, sort=True, windows=Windows(1.0, 1.0, True) if windows else None)
        _write(path, output, None)
        assert [found["video"] for found in read_output(output.path)[1]] == [one["video"] for one in wanted]


def test_damaged_rows_are_said_and_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j"
    with contextlib.closing(Journal(path, FACTS)) as journal:
        journal.write([row(number) for number in range(5)])
    path.write_bytes(path.read_bytes().replace(b"2.webm", b"2.we\xffm"))
    with contextlib.closing(Journal(path, FACTS, resume=True)) as journal:
        assert journal.videos == 4 and "4.webm" in journal.seen and "2.webm" not in journal.seen
    assert "has 1 damaged lines; the videos that they told of are scored again" in capsys.readouterr().err
    assert [found["path"] for found in read_rows(path)] == [f"{number}.webm" for number in (0, 1, 3, 4)]


def test_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv.journal"
    Journal(path, FACTS, resume=False).close()
    with pytest.raises(UserError, match=r'started with engine = "abc", and now it is "xyz"'):
        Journal(path, {**FACTS, "engine": "xyz"}, resume=True)
    for content in (b"text\n", b"\0\xff", b'{"x'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a journal"):
            Journal(path, FACTS, resume=True)
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="is not a journal of this ssv2rt"):
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


def test_journals_of_several_processes_exclude_each_other(tmp_path: Path) -> None:
    """Also where one process removes the journal between the opening and the locking of another."""
    code = (
        "import os, sys; from pathlib import Path;"
        "from ssv2rt.core.errors import UserError; from ssv2rt.scoring.journal import Journal\n"
        "held = 0\n"
        "while held < 150:\n"
        "    try: journal = Journal(Path('j'), {}, overwrite=True)\n"
        "    except UserError: continue\n"
        "    os.close(os.open('held', os.O_CREAT | os.O_EXCL))\n"  # fails if another process has a journal
        "    held += 1\n"
        "    os.unlink('held'); journal.remove()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_journal_is_locked_until_the_output_is_written(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from ssv2rt.scoring import run; write = run._write\n"
        "def slowly(*arguments):\n"
        "    open('written', 'w').close()\n"
        "    while not os.path.exists('go'): time.sleep(0.01)\n"
        "    return write(*arguments)\n"
        "run._write = slowly; sys.argv = ['ssv2rt', *sys.argv[1:]]\n"
        "if __name__ == '__main__': from ssv2rt.cli import main; main()\n"
    )
    (tmp_path / "slow.py").write_text(code)
    out = tmp_path / "p.csv"
    arguments = ["score", str(tiny_set / "videos"), "--out", str(out), "--engine", str(tiny_bundle.path)]
    first = subprocess.Popen([sys.executable, "slow.py", *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "written").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = start(tiny_bundle, tiny_set / "videos", out, "--overwrite")
    _, said = second.communicate()
    assert second.returncode == 1 and b"another process is writing" in said
    (tmp_path / "go").touch()
    assert first.wait() == 0 and out.read_bytes().count(b"\n") == 81


def test_engine_that_is_replaced_ends_the_run(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    """A worker that is started anew must not score with another engine."""
    engine = tmp_path / "engine"
    shutil.copytree(tiny_bundle.path, engine)
    sources = sorted((tiny_set / "videos").iterdir())
    (tmp_path / "in").mkdir()
    for number in range(3000):
        os.link(sources[number % len(sources)], tmp_path / "in" / f"{number}.webm")
    out, journal = tmp_path / "p.csv", tmp_path / "p.csv.journal"
    process = start(replace(tiny_bundle, path=engine), tmp_path / "in", out)
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    shutil.copytree(tiny_bundle.path, tmp_path / "other")
    labels = ["other", *tiny_bundle.info.labels[1:]]
    info = json.loads((engine / INFO).read_text()) | {"labels": labels}
    (tmp_path / "other" / INFO).write_text(json.dumps(info))
    engine.rename(tmp_path / "old")
    (tmp_path / "other").rename(engine)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1 and b"was replaced while it was in use" in said and b"Traceback" not in said, said
    assert not out.exists() and not any(found.get("label") == "other" for found in read_rows(journal))
    process = start(replace(tiny_bundle, path=engine), tmp_path / "in", out, "--resume")
    _, said = process.communicate()
    assert process.returncode == 1 and b"was started with engine = " in said


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
    assert sorted(os.listdir(folder)) == OUTPUTS


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
    assert sorted(os.listdir(tmp_path)) == OUTPUTS and sorted(out.read_bytes().split()) == sorted(whole.split())
    done = score(tiny_bundle, tiny_set / "videos", out, "--resume", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["left"] == 0 and "nothing is left to score" in done.stderr


def test_existing_journal_needs_resume_or_overwrite(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv.journal").write_text(json.dumps({"ssv2rt": 1}) + "\n")
    done = score(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv")
    assert done.returncode == 2 and "add --resume to go on with it, or --overwrite to begin anew" in done.stderr
    done = score(tiny_bundle, tiny_set / "videos", tmp_path / "p.csv", "--overwrite")
    assert done.returncode == 0 and sorted(os.listdir(tmp_path)) == OUTPUTS


def test_local_copies_do_not_stay_behind(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    """Neither of a call that ends, nor, once the next one has begun, of one that was killed."""
    (tmp_path / "tmp").mkdir()
    inputs = f"simplecache::file://{tiny_set / 'videos'}"
    command = [sys.executable, "-m", "ssv2rt", "score", inputs, "--out", str(tmp_path / "p.csv")]
    command += ["--engine", str(tiny_bundle.path)]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(command, env=environment)
    while not any(path.is_file() for path in (tmp_path / "tmp").rglob("*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert os.listdir(tmp_path / "tmp")
    (tmp_path / "p.csv.journal").touch()  # it may not have come that far
    assert subprocess.run([*command, "--resume"], env=environment).returncode == 0
    assert not os.listdir(tmp_path / "tmp") and sorted(os.listdir(tmp_path)) == [*OUTPUTS, "tmp"]


def test_run_without_rows_leaves_no_journal(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """An empty journal would make the next run fail."""
    done = ssv2rt("score", "-", "--out", "p.csv", "--engine", tiny_bundle.path, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Error: no videos in '-'") and not os.listdir(tmp_path)


def test_closed_stdin_stdout_and_stderr(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    """Files that are opened must not get the file descriptors 0 to 2."""
    video = min((tiny_set / "videos").iterdir())
    command = f"'{sys.executable}' -m ssv2rt score '{video}' --out p.csv --engine '{tiny_bundle.path}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert sorted(os.listdir(tmp_path)) == OUTPUTS and (tmp_path / "p.csv").read_text().count("\n") == 2


def test_resume_with_other_inputs_keeps_old_rows(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of earlier inputs are kept, with a warning."""
    first, second = sorted((tiny_set / "videos").iterdir())[:2]
    facts = begun_with(tiny_bundle, first, tmp_path, monkeypatch)
    journal = Journal(tmp_path / "p.csv.journal", facts, overwrite=True)
    journal.write([row(0) | {"video": str(first), "path": str(first)}, row(1)])
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
