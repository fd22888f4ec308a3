"""Pictures beside what a decoder shows."""

import io
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.video.decode import decode_clips
from ssv2rt.video.pictures import frames_and_key, read_pictures, split_superframe
from ssv2rt.video.probe import decode_fully, probe
from tests.video.clips import SHOW_AGAIN, VP8_HIDDEN, decoded, hidden_vp9, webm
from tests.video.test_codecs import whole


def test_a_superframe_holds_a_hidden_picture_and_a_shown_one() -> None:
    packets = hidden_vp9()
    pictures = [read_pictures("vp9", packet) for packet in packets]
    assert [p.key for p in pictures[0]] == [True] and pictures[0][0].size == (427, 240)
    assert sum(len(p) for p in pictures) >= len(packets) + 3
    for of_packet in pictures:
        assert [p.shown for p in of_packet] in ([True], [False, True])
        assert not any(p.key for p in of_packet[1:])
    assert sum(p.shown for of_packet in pictures for p in of_packet) == len(decoded(webm(packets)))


def test_pictures_of_the_real_clip_are_those_of_ffmpegs_filter(real_videos: Path) -> None:
    """`vp9_superframe_split` is FFmpeg's own reader of superframes."""
    with av.open(str(real_videos / "ssv2_166766.webm")) as container:
        stream = container.streams.video[0]
        split = av.BitStreamFilterContext("vp9_superframe_split", stream)
        ours: list[bytes] = []
        theirs: list[bytes] = []
        for packet in container.demux(stream):
            if packet.size:
                data = bytes(packet)
                ours += [data[p.start : p.end] for p in read_pictures("vp9", data)]
            theirs += [bytes(part) for part in split.filter(packet if packet.size else None)]
    assert len(ours) == 56
    assert [len(data) for data in ours] == [len(data) for data in theirs] and ours == theirs


def test_hidden_pictures_are_no_frames(tmp_path: Path) -> None:
    (tmp_path / "vp9.webm").write_bytes(webm(hidden_vp9()))
    for path, packets, frames in ((VP8_HIDDEN, 64, 60), (tmp_path / "vp9.webm", 48, 48)):
        info = probe(path)
        true = decoded(path.read_bytes())
        with av.open(str(path)) as container:
            assert sum(bool(packet.size) for packet in container.demux(video=0)) == packets
        assert info.frames == len(true) == decode_fully(path) == frames
        assert info.duration == pytest.approx(frames / 12, abs=0.05) and not info.variable and info.key_frames == 1


@pytest.mark.parametrize("wanted", [[0], [59], [13, 14, 15, 16], [3, 20, 21, 44, 58], [*range(60)]])
def test_frames_behind_hidden_pictures_are_the_right_ones(wanted: list[int]) -> None:
    info = probe(VP8_HIDDEN)
    (clip,) = decode_clips(VP8_HIDDEN, whole(VP8_HIDDEN, wanted, info), size=64)
    with av.open(str(VP8_HIDDEN)) as container:
        frames = [frame.to_ndarray(format="rgb24", width=64, height=64) for frame in container.decode(video=0)]
    for made, number in zip(clip, wanted, strict=True):
        differences = [float(np.abs(made.astype(int) - frame).mean()) for frame in frames]
        assert int(np.argmin(differences)) == number


def test_a_picture_that_is_shown_again_is_a_frame() -> None:
    packets = hidden_vp9(20)
    again = [*packets[:14], SHOW_AGAIN, *packets[14:]]
    pictures = [read_pictures("vp9", packet) for packet in again]
    assert [(p.shown, p.decoded) for p in pictures[14]] == [(True, False)]
    info = probe(webm(again))
    assert info.frames == len(decoded(webm(again))) == 21


@pytest.mark.parametrize("profile", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_sizes_and_color_spaces_are_read_in_every_profile(profile: str, tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg on this machine")
    path = tmp_path / "a.webm"
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=98x66:r=12:d=1", "-pix_fmt", profile]
    subprocess.run([*command, "-colorspace", "bt709", "-c:v", "libvpx-vp9", "-deadline", "realtime", path], check=True)
    with av.open(str(path)) as container:
        first = read_pictures("vp9", bytes(next(container.demux(video=0))))[0]
    assert (first.key, first.size, first.color_space) == (True, (98, 66), 2)


def test_a_size_that_changes_is_named() -> None:
    large, small = hidden_vp9(6), hidden_vp9(6, width=320)
    sizes = [p.size for packet in (*large, *small) for p in read_pictures("vp9", packet) if p.size]
    assert sizes == [(427, 240), (320, 240)]
    with av.open(io.BytesIO(VP8_HIDDEN.read_bytes())) as container:
        first = read_pictures("vp8", bytes(next(container.demux(video=0))))[0]
    assert (first.key, first.shown, first.size) == (True, True, (96, 64))


@given(st.binary(min_size=1, max_size=300), st.sampled_from(["vp8", "vp9"]))
def test_whatever_the_bytes_are_pictures_follow_each_other(packet: bytes, codec: str) -> None:
    pictures = read_pictures(codec, packet)
    borders = [0, *(border for p in pictures for border in (p.start, p.end))]
    assert borders == sorted(borders) and borders[-1] <= len(packet) and all(p.end > p.start for p in pictures)


@given(st.binary(min_size=1, max_size=60), st.sampled_from(["vp8", "vp9"]), st.integers(1, 4))
def test_frames_are_counted_as_pictures_are_read(packet: bytes, codec: str, frames: int) -> None:
    """Also in superframes, in every profile, and of noise."""
    index = bytes([0xC0 | frames - 1, *[len(packet)] * frames])
    for data in (packet, packet * frames + index + index[:1]):
        pictures = read_pictures(codec, data)
        assert frames_and_key(codec, data) == (sum(p.shown for p in pictures), pictures[0].key)


@given(st.lists(st.binary(min_size=1, max_size=70), min_size=1, max_size=8), st.integers(0, 3))
def test_any_index_is_read(frames: list[bytes], magnitude: int) -> None:
    marker = bytes([0xC0 | magnitude << 3 | len(frames) - 1])
    sizes = b"".join(len(frame).to_bytes(magnitude + 1, "little") for frame in frames)
    packet = b"".join(frames) + marker + sizes + marker
    assert [packet[start:end] for start, end in split_superframe(packet)] == frames


def bit_by_bit(packet: bytes) -> tuple[bool, bool, bool, bool]:
    """Of a VP9 picture of profile 0 to 2, by the specification: decoded, key, shown, and whether it names its size."""
    bits = iter("".join(f"{byte:08b}" for byte in packet) + "0" * 400)

    def take(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    take(4)
    if take(1):
        return False, False, True, False
    inter, shown, resilient = take(1), take(1), take(1)
    if not inter:
        return True, True, bool(shown), True
    intra_only = not shown and take(1)
    if not resilient:
        take(2)
    if intra_only:
        return True, False, bool(shown), True
    take(8 + 12)
    return True, False, bool(shown), not any(take(1) for _ in range(3))


@given(st.integers(0, 63).filter(lambda head: head >> 4 != 3), st.binary(min_size=4, max_size=30))
def test_every_header_of_vp9_is_read_as_the_specification_says(head: int, rest: bytes) -> None:
    packet = bytes([0x80 | head]) + rest + b"\x00"
    (picture,) = read_pictures("vp9", packet)
    assert (picture.decoded, picture.key, picture.shown, picture.size is not None) == bit_by_bit(packet)
