"""A video opens itself and nothing else, and what is beside its pictures does not decide what it is."""

import re
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.stream import Disposition

from ssv2rt.core.recipes import Clip
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.container import BadVideo, open_video
from ssv2rt.video.container import orientation as orientation_of
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.conftest import REAL, frame_numbers, numbered_video

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


def exif(orientation: int) -> bytes:
    """A JPEG segment that says how the picture is to be turned (EXIF 2.3, tag 0x0112)."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + struct.pack(">H", 1) + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_exif(path: Path, orientation: int) -> Path:
    """An AVI of JPEG pictures, 64x48, that have EXIF data."""
    pictures = []
    with av.open(str(numbered_video(path.with_suffix(".plain.avi"), "mjpeg", frames=5))) as container:
        pictures += [bytes(packet) for packet in container.demux(video=0) if packet.size]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.time_base = Fraction(1, 12)
        container.start_encoding()
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture[:2] + exif(orientation) + picture[2:])
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            container.mux(packet)
    return path


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (6, (48, 64))])
def test_exif_data_does_not_decide_but_turns(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    path = with_exif(tmp_path / "a.avi", orientation)
    info = probe(path)
    assert (info.frames, info.width, info.height) == (5, *size)
    request = evaluation_request("a", path, info, clip=Clip(frames=3, size=32, center_crop=1.0))
    clips = decode_clips(path, request, size=32)
    assert frame_numbers(clips[0]) == request.frames[0].tolist()
    with av.open(str(path)) as container:
        turn = orientation_of(next(container.decode(video=0)))
    assert turn[0] == (size == (48, 64))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_title_that_is_no_utf8_does_not_decide(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf#"
        stream = container.add_stream("libx264", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 48
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame(64, 48)))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"caf#" in data
    assert probe(data.replace(b"caf#", b"caf\xe9")).frames == 6


def test_the_stream_that_players_show_is_taken(tmp_path: Path) -> None:
    """Not the larger still beside it, as motion photos have; also in Matroska."""
    for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")):
        path = tmp_path / f"a.{suffix}"
        with av.open(str(path), "w") as container:
            streams = []
            for width, height in ((64, 48), (128, 96)):
                stream = container.add_stream(codec, rate=12)
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                streams.append(stream)
            streams[0].disposition = Disposition.default
            for number in range(12):
                for stream in streams[: 2 if number == 0 else 1]:
                    frame = av.VideoFrame(stream.width, stream.height)
                    frame.pts, frame.time_base = number, Fraction(1, 12)
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode(None))
        info = probe(path)
        assert (info.frames, info.width, info.height, info.streams) == (12, 64, 48, 2), suffix
