"""Probing: counts frames without decoding, and notices what is broken."""

import os
from pathlib import Path

import av
import pytest

from ssv2rt.dataset.probe import BadVideo, probe
from tests.conftest import numbered_video


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


def test_an_mp4_without_its_index_is_unreadable(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mp4", "libx264", frames=40)
    data = path.read_bytes()
    with pytest.raises(BadVideo, match="unreadable"):
        probe(data[: len(data) // 2])


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n" * 100, b"\x1a\x45\xdf\xa3", bytes(5000)])
def test_what_is_no_video_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.webm"
    path.write_bytes(content)
    with pytest.raises(BadVideo, match="unreadable"):
        probe(path)


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
