"""Probing: counts frames without decoding, and notices what is broken."""

import io
import os
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipes import Clip
from ssv2rt.dataset.synthetic import mux_webm
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.container import BadVideo
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.conftest import corners, numbered_video


@pytest.mark.parametrize(
    ("codec", "name", "suffix"),
    [
        ("libvpx-vp9", "vp9", "webm"),
        ("libvpx", "vp8", "webm"),
        ("libx264", "h264", "mp4"),
        ("mpeg4", "mpeg4", "avi"),
        ("mjpeg", "mjpeg", "avi"),
    ],
)
def test_frames_are_counted_as_the_decoder_counts_them(tmp_path: Path, codec: str, name: str, suffix: str) -> None:
    path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=17, width=66, height=50)
    info = probe(path)
    assert (info.codec, info.width, info.height, info.frames, info.rate) == (name, 66, 50, 17, 12)
    assert probe(path.read_bytes()) == info


def test_real_clips(real_videos: Path) -> None:
    found = {path.name: probe(path) for path in real_videos.iterdir() if path.suffix != ".md"}
    frames = {name: info.frames for name, info in found.items()}
    assert frames == {
        "ssv2_166766.webm": 49,
        "arm_wrestling_h264.mp4": 280,
        "kinetics_sample.mp4": 300,
        "test_mpeg4.avi": 164,
        "ucf_sample.avi": 131,
        "sintel_trailer_short.mp4": 23,
    }


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
@pytest.mark.parametrize(("codec", "suffix"), [("libvpx-vp9", "webm"), ("mpeg4", "avi")])
def test_a_file_that_lost_its_end_is_noticed(tmp_path: Path, codec: str, suffix: str, share: float) -> None:
    path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=40)
    data = path.read_bytes()
    with pytest.raises(BadVideo, match="truncated"):
        probe(data[: int(len(data) * share)])


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx-vp9", "webm"), ("libx264", "mkv"), ("libx264", "flv")])
def test_a_clock_that_does_not_start_at_0(tmp_path: Path, codec: str, suffix: str) -> None:
    """These headers tell when the last frame ends, not how long the video is."""
    path, late = numbered_video(tmp_path / f"a.{suffix}", codec, frames=24), tmp_path / f"late.{suffix}"
    with av.open(str(path)) as before, av.open(str(late), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                assert packet.time_base is not None and packet.pts is not None
                packet.pts += round(2 / packet.time_base)
                packet.dts = None if packet.dts is None else packet.dts + round(2 / packet.time_base)
                packet.stream = stream
                after.mux(packet)
    info = probe(late)
    assert info.frames == 24 and info.duration == pytest.approx(2, abs=0.1)


def test_an_mp4_without_its_index_is_truncated(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mp4", "libx264", frames=40)
    data = path.read_bytes()
    with pytest.raises(BadVideo, match="truncated"):
        probe(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text\n" * 100, "unreadable"),
        (b"\x1a\x45\xdf\xa3", "unreadable"),
        (bytes(5000), "unreadable"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.webm"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(BadVideo, match=f"^{reason}$"):
            probe(source)


def test_sound_alone_has_no_video_stream(tmp_path: Path) -> None:
    import numpy as np

    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960 * 4), np.int16), format="s16", layout="stereo")
        frame.rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadVideo, match="no video stream"):
        probe(tmp_path / "a.webm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    kinds = {"webm": "libvpx-vp9", "mp4": "libx264", "avi": "mpeg4"}
    return {
        suffix: numbered_video(folder / f"a.{suffix}", codec, frames=12).read_bytes() for suffix, codec in kinds.items()
    }


@settings(max_examples=150, deadline=None)
@given(
    suffix=st.sampled_from(["webm", "mp4", "avi"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    share=st.floats(0, 1) | st.just(1.0),
)
def test_whatever_happens_to_the_bytes_is_a_bad_video_or_a_good_one(
    whole: dict[str, bytes], suffix: str, changes: list[tuple[float, int]], share: float
) -> None:
    data = bytearray(whole[suffix])
    for where, value in changes:
        data[int(where * len(data))] = value
    source = bytes(data[: int(len(data) * share)])
    try:
        wanted = evaluation_request("x", Path("x"), probe(source), clip=Clip(frames=4))
        clip = decode_clips(source, wanted, size=16)
    except BadVideo:
        return
    assert clip.shape == (1, 4, 16, 16, 3)


def test_a_list_of_other_files_is_no_video(tmp_path: Path) -> None:
    numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=5)
    (tmp_path / "list.webm").write_text("ffconcat version 1.0\nfile 'a.webm'\n")
    with pytest.raises(BadVideo, match="unreadable"):
        probe(tmp_path / "list.webm")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.webm")
    with pytest.raises(BadVideo, match="unreadable"):
        probe(tmp_path / "pipe.webm")


def test_missing_folder_and_forbidden(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="missing"):
        probe(tmp_path / "no.webm")
    (tmp_path / "d.webm").mkdir()
    with pytest.raises(BadVideo, match="unreadable"):
        probe(tmp_path / "d.webm")
    path = tmp_path / "a.webm"
    path.touch(mode=0o000)
    if os.geteuid() != 0:  # root may read everything
        with pytest.raises(BadVideo, match="no permission"):
            probe(path)


@pytest.mark.parametrize(("space", "name"), [(1, "bt709"), (5, "bt601"), (2, "")])
def test_the_colours_of_vp9_are_told_by_its_header(tmp_path: Path, space: int, name: str) -> None:
    """Also where the container says nothing of them."""
    coded = corners(tmp_path / "a.webm", space=space, codec="libvpx-vp9")
    assert probe(coded).matrix == name
    with av.open(str(coded)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    silent = mux_webm(packets, 64, 48, "first")
    with av.open(io.BytesIO(silent), options={"codec_whitelist": "none"}) as container:
        assert container.streams.video[0].codec_context.colorspace == 2
    assert probe(silent).matrix == name
