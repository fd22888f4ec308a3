"""Progress: a live bar on a terminal, log lines elsewhere, nothing for short work."""

import os
import pty
import re
import subprocess
import sys

import pytest

from ssv2rt.core.progress import Progress

CODE = """
import sys, time
from ssv2rt.core import log, progress as module
log.log_to_stderr()
module.FIRST_LINE, module.NEXT_LINE = {first}, 0.05
with module.Progress("training", 40) as progress:
    for done in range(1, 41):
        time.sleep(0.01)
        progress.show(done, loss="1.25", top_1="50.0%")
"""


def test_log_lines_when_stderr_is_not_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(first=0.1)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert 3 <= len(lines) <= 12
    assert re.fullmatch(r"training: \d+/40 clips, [\d.]+/s, 0:0\d left, loss 1.25, top 1 50.0%", lines[0])
    assert re.fullmatch(r"training: 40/40 clips, [\d.]+/s, done in 0:0\d", lines[-1])
    assert "\x1b" not in done.stderr


def test_short_work_logs_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(first=30)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_units_already_done_do_not_count_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ssv2rt.core.progress.FIRST_LINE", 0.0)
    with Progress("scoring", 1000, already_done=900) as progress:
        progress.show(900)
    assert capsys.readouterr().err.startswith("scoring: 900/1000 clips, 0/s\n")


def test_a_live_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", CODE.format(first=0)], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    os.close(ours)
    text = shown.decode()
    assert "\x1b[" in text  # it redraws itself
    assert "training" in text and "40/40" in text and "loss 1.25" in text and re.search(r"\d/s", text)
