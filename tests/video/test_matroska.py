"""Pictures of MJPEG in Matroska, found without FFmpeg's demuxer: the same, or left to FFmpeg."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.container import BadVideo
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.matroska import mjpeg_pictures
from ssv2rt.video.seek import all_frames, frames_needed
from tests.conftest import frame_numbers, numbered_video
from tests.video.corpus import KINDS, encode, pixels, shown


def test_pictures_are_those_that_ffmpeg_finds() -> None:
    data = encode(KINDS["mjpeg"], "mkv", 30)
    pictures = mjpeg_pictures(data)
    assert pictures is not None and len(pictures) == 30
    expected = [pixels(frame) for frame in shown(data)]
    wanted = np.array([0, 3, 3, 17, 29, 31])
    assert [(n, pixels(f)) for n, f in frames_needed(data, 30, wanted)] == [(n, expected[n]) for n in (0, 3, 17, 29)]
    assert [pixels(f) for _, f in all_frames(data)] == expected
    assert not list(frames_needed(data, 30, np.array([30, 31])))


@pytest.mark.parametrize(
    "data",
    [
        encode(KINDS["mjpeg"], "mkv", 5, sound=0.2),
        encode(KINDS["mjpeg"], "avi", 5),
        encode(KINDS["vp9"], "webm", 5),
        encode(KINDS["mjpeg"], "mkv", 5)[:-1],
        encode(KINDS["mjpeg"], "mkv", 5)[:400],
        encode(KINDS["mjpeg"], "mkv", 5, live="1"),
        b"",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3V_MJPEG" + bytes(100),
    ],
    ids=["sound", "avi", "vp9", "cut", "header", "live", "empty", "magic", "zeros"],
)
def test_what_is_unusual_is_left_to_ffmpeg(data: bytes) -> None:
    assert mjpeg_pictures(data) is None


def request(frames: list[int], count: int) -> ClipRequest:
    return ClipRequest("", Path(), np.array([frames], np.int32), (CropBox(0, 0, 48, 48),), (64, 48), count)


def test_clips_of_whole_cut_and_damaged_files(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mkv", "mjpeg", frames=12)
    wanted = request([0, 5, 5, 11], 12)
    for source in (path, path.read_bytes()):
        assert frame_numbers(decode_clips(source, wanted, size=32)[0]) == [0, 5, 5, 11]
    with pytest.raises(BadVideo, match="truncated"):
        decode_clips(path, request([0, 12], 13), size=32)
    with pytest.raises(BadVideo, match="truncated"):
        decode_clips(path.read_bytes()[:-2000], wanted, size=32)
    rng, data = np.random.default_rng(0), path.read_bytes()
    for _ in range(60):
        hurt = bytearray(data)
        for at in rng.integers(0, len(hurt), 3):
            hurt[at] = rng.integers(256)
        mjpeg_pictures(bytes(hurt))
        with contextlib.suppress(BadVideo):
            assert decode_clips(bytes(hurt), wanted, size=32).shape == (1, 4, 32, 32, 3)
