"""Frames are those of a plain decoder: their number, their pictures, and which one has which number."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.container import BadVideo
from ssv2rt.video.crop_scale import CropScaler
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import decode_fully, probe
from ssv2rt.video.seek import frames_needed
from tests.video.corpus import KINDS, encode, every, pixels, remux, shown


@functools.cache
def made(name: str, suffix: str, frames: int) -> bytes:
    return encode(KINDS[name], suffix, frames)


def check(data: bytes, *wanted: list[int]) -> int:
    """Compares a video with what a plain decoder shows of it, and returns how many frames that is."""
    true = shown(data)
    last = len(true) - 1
    info = probe(data)
    assert info.frames == len(true) == decode_fully(data)
    whole = CropBox(0, 0, info.width, info.height)
    for numbers in ([0], [last], [last // 3, last // 2, last], *wanted):
        numbers = sorted(min(number, last) for number in numbers)
        with contextlib.suppress(BadVideo):  # where key frames are none; then `decode_clips` decodes all frames
            seen = {number: pixels(frame) for number, frame in frames_needed(data, info.frames, np.array(numbers))}
            assert all(seen[number] == pixels(true[number]) for number in numbers if number in seen), numbers
        request = ClipRequest(
            "x", Path("x"), np.array([numbers], np.int32), (whole,), (info.width, info.height), info.frames
        )
        (clip,) = decode_clips(data, request, size=32)
        crop_scaler = CropScaler((whole,), (info.width, info.height), 32)
        for cut, number in zip(clip, numbers, strict=True):
            expected = np.empty((1, 32, 32, 3), np.uint8)
            crop_scaler.cut(true[number], expected)
            assert np.array_equal(cut, expected[0]), (numbers, number)
    return len(true)


@pytest.mark.parametrize(("name", "suffix"), every())
def test_every_kind_in_every_container(name: str, suffix: str) -> None:
    assert check(made(name, suffix, 30), [*range(30)], [7, 8, 21]) == 30 or name == "vp8"


def from_packet(first: int, *, false_keys: int = 0, no_times: bool = False):  # type: ignore[no-untyped-def]
    """Leaves out the first packets; calls every so-manieth a key frame; takes the times away."""

    def change(number: int, packet: av.Packet) -> bool:
        if false_keys and number % false_keys == 0:
            packet.is_keyframe = True
        return number >= first

    return change


CUT = {
    "h264 open": ("mp4", "mkv", "ts"),
    "h264 refresh": ("mkv", "ts"),
    "hevc open": ("mp4", "mkv", "ts"),
    "mpeg2": ("ts", "mkv", "mpg"),
    "mpeg4 b": ("avi", "mkv"),
    "vp8": ("webm",),
    "vp9": ("webm",),
    "flv1": ("flv",),
}


def check_cut(name: str, suffix: str, first: int, frames: int, false_keys: int, wanted: list[int]) -> None:
    """Of a video that begins at any packet, and whose container calls packets key frames that are none."""
    data = remux(made(name, KINDS[name].suffixes[0], frames), suffix, from_packet(first, false_keys=false_keys))
    if shown(data):
        check(data, wanted)


CUTS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([(name, suffix) for name, suffixes in CUT.items() for suffix in suffixes]),
        "first": st.integers(0, 23),
        "frames": st.sampled_from([31, 48]),
        "false_keys": st.sampled_from([0, 1, 5, 7]),
        "wanted": st.lists(st.integers(0, 47), min_size=1, max_size=8),
    }
)


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_videos_that_begin_anywhere(cut: dict) -> None:
    check_cut(*cut.pop("kind"), **cut)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(CUTS)
def test_many_videos_that_begin_anywhere(cut: dict) -> None:
    check_cut(*cut.pop("kind"), **cut)


def behind_edit_lists(folder: Path, name: str, suffix: str, seconds: list[float]) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg on this machine")
    (folder / f"a.{suffix}").write_bytes(made(name, suffix, 75))
    for second in seconds:
        path = folder / f"{second:.2f}.{suffix}"
        cut = [
            "ffmpeg",
            "-v",
            "error",
            "-ss",
            f"{second:.2f}",
            "-i",
            str(folder / f"a.{suffix}"),
            "-c",
            "copy",
            str(path),
        ]
        subprocess.run(cut, check=True)
        check(path.read_bytes(), [3, 4, 20], [*range(75)])


@pytest.mark.parametrize("name", ["hevc open", "h264 open", "mpeg4 b"])
def test_open_groups_behind_edit_lists(tmp_path: Path, name: str) -> None:
    behind_edit_lists(tmp_path, name, "mp4", [0.08, 0.64, 1.36, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), [(name, "mp4") for name in KINDS if "mp4" in KINDS[name].suffixes])
def test_every_kind_behind_edit_lists(tmp_path: Path, name: str, suffix: str) -> None:
    behind_edit_lists(tmp_path, name, suffix, [0.08 * step for step in range(1, 36)])


def test_mpeg4_that_says_nothing_of_its_b_frames() -> None:
    """FFmpeg shows the picture before the first B frame twice; also a reader of headers must not be surer than that."""
    data = made("mpeg4 b", "avi", 30)
    layer = data.index(b"\x00\x00\x01\x20")
    for begin in [at for at in range(layer, len(data) - 4) if data[at : at + 4] == b"\x00\x00\x01\x20"]:
        data = data[: begin + 3] + b"\xb2" + data[begin + 4 :]  # now it is user data
    assert shown(data)
    check(data)


def test_packets_without_start_codes_do_not_end_a_stream() -> None:
    """A transport stream with noise in the place of a picture."""
    for name in ("h264", "hevc"):
        data = bytearray(made(name, "ts", 40))
        with av.open(io.BytesIO(bytes(data))) as container:
            packets = [(p.pos, bytes(p)) for p in container.demux(video=0) if p.size]
        position = packets[26][0] + 188
        data[position + 4 : position + 188] = np.random.default_rng(0).bytes(184)
        assert probe(bytes(data)).frames in (39, 40)


def test_a_stream_that_appears_late_does_not_end_reading() -> None:
    """What looks like sound behind the last tag of a Flash video."""
    data = made("h264", "flv", 12)
    sound = b"\x08\x00\x00\x04" + bytes(7) + b"\x2f\x00\x00\x00" + b"\x00\x00\x00\x0f"
    for late in (data, data + sound, data + b"hello, I was appended\n" * 9):
        assert probe(late).frames == decode_fully(late) == 12
