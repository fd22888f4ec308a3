"""A video opens itself and nothing else: no other file, and no socket."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssv2rt.video.container import BadVideo, open_video
from ssv2rt.video.probe import probe
from tests.conftest import REAL, numbered_video

SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="0" codecs="avc1.42c00d" bandwidth="1">'
    "<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
)
LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "concat": "file '{target}'\nfile '{target}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
    "dash": DASH,
    "sdp": SDP,
}
TARGETS = {
    "beside it": "other.mp4",
    "by path": "/etc/passwd",
    "by http": "http://127.0.0.1:9/a.mp4",
    "by tcp": "tcp://127.0.0.1:9",
}
OPEN = """
import sys
from pathlib import Path
from ssv2rt.video.container import BadVideo, open_video

print("ready", file=sys.stderr, flush=True)
for name in sys.argv[1:]:
    for source in (Path(name), Path(name).read_bytes()):
        try:
            open_video(source)
            print("opened", name)
        except BadVideo as error:
            print(error, name)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Lists of other files and addresses, each under several extensions."""
    folder = tmp_path_factory.mktemp("hostile")
    numbered_video(folder / "other.mp4", "libx264", frames=5)
    paths = []
    for kind, text in LISTS.items():
        for where, target in TARGETS.items():
            for suffix in ("mp4", "webm", "ts"):
                path = folder / f"{kind} {where}.{suffix}"
                path.write_text(text.replace("{target}", target))
                paths.append(path)
    return paths


def test_lists_of_other_files_are_unreadable(hostile: list[Path]) -> None:
    assert len(hostile) >= 50
    for path in hostile:
        for source in (path, path.read_bytes()):
            with pytest.raises(BadVideo, match="unreadable"):
                open_video(source)


def test_no_socket_and_no_other_file_is_opened(hostile: list[Path], tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("no strace on this machine")
    log = tmp_path / "calls"
    command = ["strace", "-f", "-o", str(log), "-e", "trace=socket,connect,bind,open,openat"]
    done = subprocess.run(
        [*command, sys.executable, "-c", OPEN, *map(str, hostile)], capture_output=True, text=True, check=True
    )
    assert "opened" not in done.stdout and len(done.stdout.splitlines()) == 2 * len(hostile)
    calls = log.read_text()
    assert not re.search(r"(socket|bind|connect)\(.*(AF_INET|PF_INET)", calls)
    assert not any(re.search(rf'open(at)?\(.*"{re.escape(target)}', calls) for target in ("/etc/passwd",))
    assert "other.mp4" not in calls


def test_ordinary_videos_are_opened(tmp_path: Path) -> None:
    for suffix, codec in (
        ("mp4", "libx264"),
        ("ts", "libx264"),
        ("avi", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("mkv", "mjpeg"),
    ):
        assert probe(numbered_video(tmp_path / f"a.{suffix}", codec, frames=5)).frames == 5


@pytest.mark.parametrize("name", ["h_sdp.mp4", "h_concatself.mp4"])
def test_hostile_cases(name: str) -> None:
    path = REAL / "cases" / name
    if not path.is_file():
        pytest.skip("no such case on this machine")
    for source in (path, path.read_bytes()):
        with pytest.raises(BadVideo, match="unreadable"):
            open_video(source)
