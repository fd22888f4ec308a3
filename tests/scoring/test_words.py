"""Whatever the shell hands over, `score` says one line, ends with the right exit code, and leaves its output."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.discover import check_inputs, discover
from tests.conftest import numbered_video


def shell(script: str, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a script of bash, where $1 and so on are the arguments, and `ssv2rt` the command."""
    command = f'ssv2rt() {{ "{sys.executable}" -m ssv2rt "$@"; }}; {script}'
    return subprocess.run(["bash", "-c", command, "-", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def videos(tiny_set: Path, tmp_path: Path) -> Path:
    """A good video and a bad one."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.webm").symlink_to(min((tiny_set / "videos").iterdir()))
    (tmp_path / "in" / "bad.webm").write_text("junk")
    return tmp_path / "in"


def test_a_reader_that_leaves_changes_nothing(tiny_bundle: Bundle, videos: Path, tmp_path: Path) -> None:
    done = shell(
        'ssv2rt score -q "$1" --engine "$2" --out p.csv | true; echo ${PIPESTATUS[0]}',
        tmp_path,
        videos,
        tiny_bundle.path,
    )
    assert done.stdout == "3\n" and done.stderr.splitlines()[1:] == [f"unreadable      1  {videos}/bad.webm"]
    assert (tmp_path / "p.csv").read_text().count("\n") == 3
    done = shell("ssv2rt recipes | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_full_disk_behind_standard_output_is_one_line(tiny_bundle: Bundle, videos: Path, tmp_path: Path) -> None:
    done = shell('ssv2rt score -q "$1" --engine "$2" --out p.csv >/dev/full', tmp_path, videos, tiny_bundle.path)
    assert done.returncode == 1 and (tmp_path / "p.csv").read_text().count("\n") == 3
    assert done.stderr.startswith("Error: cannot write to stdout: No space") and done.stderr.count("\n") == 1


def test_a_deleted_working_directory_is_one_line(tiny_bundle: Bundle, videos: Path, tmp_path: Path) -> None:
    script = 'mkdir d; cd d; rmdir ../d; ssv2rt score "$1" --engine "$2" --out "$3"'
    done = shell(script, tmp_path, videos, tiny_bundle.path, tmp_path / "p.csv")
    assert done.returncode == 1 and done.stderr.startswith("Error: the working directory has been deleted")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kib", [300_000, 500_000])
def test_too_little_address_space_is_one_line(tiny_bundle: Bundle, videos: Path, tmp_path: Path, kib: int) -> None:
    """For this process, or for its workers."""
    script = 'ulimit -v "$3"; ssv2rt score "$1" --engine "$2" --out p.csv'
    done = shell(script, tmp_path, videos, tiny_bundle.path, kib)
    assert done.returncode == 1 and "out of memory" in done.stderr and "`ulimit -v`" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "p.csv.journal").exists()


def test_an_endless_list_is_refused(tmp_path: Path) -> None:
    for name in ("/dev/zero", str(tmp_path / "long")):
        (tmp_path / "long").write_bytes(b"x" * 100_000)
        with pytest.raises(UsageError, match=f"'{name}' is no list of names"):
            check_inputs([f"@{name}"])


def test_a_video_in_place_of_a_list_and_a_live_stream_are_refused(tmp_path: Path) -> None:
    for codec, suffix in (("libvpx-vp9", "webm"), ("libx264", "mp4"), ("mpeg4", "avi"), ("mpeg2video", "ts")):
        video = numbered_video(tmp_path / f"a.{suffix}", codec, frames=4)
        with pytest.raises(UsageError, match="is a video, and no list of names"):
            list(discover([f"@{video}"]))
    for address in ("rtsp://camera/1", "udp://239.0.0.1:1234"):
        with pytest.raises(UsageError, match="is a live stream, which has no end; record it first"):
            list(discover([address]))


def test_lists_separate_names_by_newlines_or_nul_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}\n.webm" for number in range(20_000)]
    (tmp_path / "list").write_bytes("\0".join(names).encode() + b"\0")
    assert [video.name for video in discover([f"@{tmp_path / 'list'}"])] == names
    (tmp_path / "list").write_bytes(b"a.webm\r\n\r\n\r\nC:\\clips\\b.webm\r\n\\\\host\\c.webm\nd.webm")
    found = [video.name for video in discover([f"@{tmp_path / 'list'}"])]
    assert found == ["a.webm", "C:\\clips\\b.webm", "\\\\host\\c.webm", "d.webm"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and r"has paths of Windows, such as 'C:\clips\b.webm'" in said


def test_names_are_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"out": "a\n\x1b[31m\udcff.csv", "videos": 3}, as_json=False)
    assert capsys.readouterr().out == "out     a \\x1b[31m\\udcff.csv\nvideos  3\n"
