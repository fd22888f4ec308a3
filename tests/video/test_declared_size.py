"""`truncated` means that a file has fewer bytes than it declares, and nothing else."""

from __future__ import annotations

import collections
import functools
import random
from collections.abc import Iterator

import av.error
import pytest

from ssv2rt.video.container import BadVideo
from ssv2rt.video.declared_size import ends_early
from ssv2rt.video.probe import probe
from tests.video.corpus import KINDS, encode

MUXERS = {
    "mp4": ({}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}, {"movflags": "dash"}),
    "mov": ({}, {"movflags": "faststart"}),
    "mkv": ({}, {"live": "1"}, {"cluster_time_limit": "200"}, {"reserve_index_space": "2000"}, {"cues_to_front": "1"}),
    "webm": ({}, {"live": "1"}, {"cluster_time_limit": "300"}),
    "avi": ({}, {"reserve_index_space": "0"}),
    "flv": ({}, {"flvflags": "no_duration_filesize"}, {"flvflags": "no_metadata"}, {"flvflags": "add_keyframe_index"}),
    "wmv": ({},),
    "ogg": ({},),
    "ivf": ({},),
    "mxf": ({},),
}
"""Options of the muxers of containers that declare their length."""
CODED = {
    "mp4": ("h264", "hevc open", "mpeg4 b", "vp9"),
    "mov": ("h264", "prores", "mjpeg", "qtrle"),
    "mkv": ("h264 deep", "mpeg2", "ffv1", "mpeg4 b"),
    "webm": ("vp8", "vp9", "av1"),
    "avi": ("mpeg4", "mjpeg", "h264", "huffyuv"),
    "flv": ("h264", "flv1"),
    "wmv": ("wmv2",),
    "ogg": ("vp8",),
    "ivf": ("vp8", "vp9"),
    "mxf": ("mpeg2",),
}
FRAMES = 30
SOUNDS = dict.fromkeys(("mp4", "mov", "mkv", "webm", "avi", "flv", "wmv", "mxf"), (0.0, 0.5, 1.2, 3.0))
"""Seconds of sound beside 1.2 s of frames."""
APPENDED = (b"", bytes(1), bytes(5000), b"hello, I was appended\n" * 9, b"\xff" * 7)
UNDECLARED = (("h264", "ts"), ("mpeg2", "ts"), ("mpeg2", "mpg"), ("h264", "h264"), ("gif", "gif"), ("h264", "nut"))


@functools.cache
def made(name: str, suffix: str, sound: float, options: tuple[tuple[str, str], ...]) -> bytes:
    return encode(KINDS[name], suffix, FRAMES, sound=sound, **dict(options))


def complete(sounds: int) -> Iterator[tuple[str, bytes]]:
    """Whole files, with so many lengths of sound."""
    for suffix, names in CODED.items():
        for name in names:
            for options in MUXERS[suffix]:
                for sound in SOUNDS.get(suffix, (0.0,))[:sounds]:
                    data = made(name, suffix, sound, tuple(options.items()))
                    yield f"{name}.{suffix} {options} {sound} s of sound", data
                    at = data.find(b"mdat") - 4
                    if suffix == "mp4" and at > 0 and at + int.from_bytes(data[at : at + 4], "big") == len(data):
                        yield f"{name}.{suffix} {options}, mdat to the end", data[:at] + bytes(4) + data[at + 4 :]


def status(data: bytes) -> str:
    try:
        probe(data)
    except BadVideo as error:
        return str(error)
    return "ok"


def check_complete(files: list[tuple[str, bytes]]) -> int:
    """No whole file is called truncated, whatever was appended to it; returns how many there were."""
    count = 0
    for number, (name, data) in enumerate(files):
        assert status(data) == "ok", name
        for more in (APPENDED[number % len(APPENDED)], APPENDED[(number + 1) % len(APPENDED)]):
            assert not ends_early(data + more), (name, more[:10])
            count += 1
    return count


def check_cut(files: list[tuple[str, bytes]], cuts: int) -> tuple[int, list[str]]:
    """How many cuts of 5 to 95% there were, and which were not noticed."""
    choose = random.Random(0)
    missed = []
    for _ in range(cuts):
        name, data = choose.choice(files)
        share = choose.uniform(0.05, 0.95)
        if (found := status(data[: int(share * len(data))])) != "truncated":
            missed.append(f"{name} at {share:.2f}: {found}")
    return cuts, missed


def test_whole_files_are_not_truncated_and_cut_ones_are() -> None:
    files = list(complete(1))
    assert check_complete(files) >= 50
    cuts, missed = check_cut(files, 200)
    assert len(missed) <= 0.02 * cuts, missed


@pytest.mark.slow
def test_the_whole_corpus() -> None:
    files = list(complete(4))
    count = check_complete(files)
    cuts, missed = check_cut(files, 4000)
    print(f"{len(files)} files, {count} complete: none called truncated; {len(missed)} of {cuts} cuts not noticed:")
    print("\n".join(missed))
    for name, suffix in UNDECLARED:
        data = made(name, suffix, 0.0, ())
        seen = collections.Counter(status(data[: len(data) * share // 100]) for share in range(5, 96, 5))
        print(f"{name}.{suffix} declares no length: {dict(seen)}")
    assert count >= 200 and len(missed) <= 0.02 * cuts


@pytest.mark.parametrize(("name", "suffix"), UNDECLARED)
def test_what_declares_no_length_is_never_truncated(name: str, suffix: str) -> None:
    data = made(name, suffix, 0.0, ())
    for share in (0.3, 0.55, 0.8):
        assert not ends_early(data[: int(share * len(data))])


def test_a_header_without_a_picture_is_truncated() -> None:
    """The header of an MP4 may be cut off in front of its video."""
    data = made("h264", "mp4", 0.0, ())
    moov = data.index(b"moov")
    for end in (moov + 4, moov + 60, moov + 130):
        assert status(data[:end]) == "truncated"


def test_errors_of_decoders_are_no_permissions() -> None:
    """Some of FFmpeg's decoders return -1 for damage, which is also EPERM."""
    from ssv2rt.video.container import reason_of

    assert reason_of(av.error.PermissionError(1, "Operation not permitted")) == "unreadable"
    assert reason_of(PermissionError(13, "Permission denied")) == "no permission"
    assert reason_of(av.error.PermissionError(13, "Permission denied")) == "no permission"
