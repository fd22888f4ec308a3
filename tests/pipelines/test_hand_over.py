"""What is handed to NVDEC gives, however it counts, exactly the frames of a plain decoder."""

from __future__ import annotations

import functools
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.pipelines.dali_graph import FrameGraph
from ssv2rt.pipelines.hand_over import CodedVideo, HandOver, Unsuitable, hand_over, read_coded
from ssv2rt.video.container import BadVideo
from tests.conftest import REAL, corners
from tests.pipelines import counting
from tests.video.clips import SHOW_AGAIN, VP8_HIDDEN, decoded, hidden_vp9, webm

COUNTINGS = ("decoded", "shown")


def moving(codec: str, suffix: str, *, width: int = 128, height: int = 96, frames: int = 40, **options: str) -> bytes:
    """A video of a bright square that moves, two key frames or more, coded as the options say."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=12, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 12)
        stream.codec_context.gop_size = 14
        for number in range(frames):
            picture = np.full((height, width, 3), 40, np.uint8)
            picture[number % 60 : number % 60 + 20, 2 * number % 100 : 2 * number % 100 + 20] = 200
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@functools.cache
def clip(name: str) -> tuple[CodedVideo, tuple[np.ndarray, ...]]:
    """A video's pictures, and what a plain decoder shows of it."""
    if name == "ssv2":
        if not (REAL / "videos").is_dir():
            pytest.skip("no real clips on this machine")
        data = (REAL / "videos" / "ssv2_166766.webm").read_bytes()
    elif name == "like ssv2":
        data = webm(hidden_vp9())
    elif name == "key frames":  # several, with hidden pictures between them
        data = webm([*hidden_vp9(30), *hidden_vp9(20, seed=1), *hidden_vp9(40, seed=2)])
    elif name == "vp8":
        data = VP8_HIDDEN.read_bytes()
    else:
        data = moving(*OTHERS[name][:2], **OTHERS[name][2])
    with av.open(io.BytesIO(data)) as container:
        codec = container.streams.video[0].codec_context.codec.canonical_name
    return read_coded(data, codec=codec), tuple(decoded(data))


OTHERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264, b frames": ("libx264", "mp4", {"x264-params": "bframes=3:b-pyramid=normal:keyint=14"}),
    "h264, no b frames": ("libx264", "matroska", {"x264-params": "bframes=0:keyint=14"}),
    "h264, deep": ("libx264", "mp4", {"x264-params": "bframes=7:b-pyramid=strict:b-adapt=0:ref=6:keyint=30"}),
    "vp9, all key": ("libvpx-vp9", "webm", {"deadline": "realtime", "g": "1", "lag-in-frames": "0"}),
}
NAMES = ("ssv2", "like ssv2", "key frames", "vp8", *OTHERS)


def check(name: str, wanted: list[int]) -> HandOver:
    video, true = clip(name)
    made = hand_over(video, np.array(wanted))
    assert made.frames.tolist() == sorted(set(wanted))
    for how in COUNTINGS:
        positions = made.positions(how)
        assert (np.diff(positions) > 0).all()
        frames = counting.decode(made.file.tobytes(), positions, how)
        for number, frame in zip(made.frames, frames, strict=True):
            assert np.array_equal(frame, true[number]), (how, number)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_first_last_all_and_repeated_frames(name: str) -> None:
    last = len(clip(name)[1]) - 1
    for wanted in ([0], [last], [*range(last + 1)], [last // 2] * 3, [0, last]):
        check(name, wanted)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_frames(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([n for n in NAMES if n != "ssv2" or (REAL / "videos").is_dir()]))
    check(name, data.draw(st.lists(st.integers(0, len(clip(name)[1]) - 1), min_size=1, max_size=20)))


@pytest.mark.parametrize("name", ["ssv2", "like ssv2", "key frames", "vp8", "vp9, all key"])
def test_dali_decodes_the_rewritten_file(name: str) -> None:
    """DALI's own CPU decoder, which counts shown pictures; in RGB, so that the nearest frame has to be the right one."""
    video, true = clip(name)
    graph = FrameGraph("cpu")
    weights = np.array([0.299, 0.587, 0.114])
    for wanted in (np.arange(1, len(true), 3), np.array([len(true) - 1]), np.array([0, len(true) // 2])):
        made = hand_over(video, wanted)
        seen = graph.decode(made, made.shown) @ weights
        assert len(seen) == len(made.frames)
        luma = np.stack([frame.astype(np.float32) for frame in true])
        for number, frame in zip(made.frames, seen, strict=True):
            shown = 16 + frame * (219 / 255)  # from full range to video range
            distances = np.abs(luma - shown).mean((1, 2))
            assert distances[number] < 1.5 and (np.delete(distances, number) > distances[number] - 0.4).all()


def test_the_double_that_counts_decoded_pictures_finds_the_fault() -> None:
    """Handed over as it is, the real kind of clip gives hidden pictures and black frames."""
    data, true = webm(hidden_vp9()), decoded(webm(hidden_vp9()))
    seen = counting.by_decoded(data, np.arange(48))
    assert sum(not np.array_equal(a, b) for a, b in zip(seen, true, strict=True)) > 24


def test_nothing_is_handed_over_that_no_wanted_frame_needs() -> None:
    video, _ = clip("key frames")
    made = check("key frames", [33, 35])
    assert int.from_bytes(made.file[24:28].tobytes(), "little") == 6  # frames 30 to 35, from the second key frame on
    both = check("key frames", [2, 52])
    assert int.from_bytes(both.file[24:28].tobytes(), "little") == 6  # 0 to 2, and 50 to 52
    assert len(made.file) < 0.2 * sum(len(picture.data) for picture in video.pictures)


def test_kinds_tell_what_a_decoder_may_treat_differently() -> None:
    assert str(check("like ssv2", [30]).kind) == "vp9 yuv420p of odd width, hidden"
    assert str(check("like ssv2", [3]).kind) == "vp9 yuv420p of odd width, plain"  # before the first hidden picture
    assert str(check("h264, b frames", [20]).kind) == "h264 yuv420p, reordered"
    assert str(check("h264, no b frames", [20]).kind) == "h264 yuv420p, plain"
    assert str(check("vp8", [59]).kind) == "vp8 yuv420p, hidden"


def test_full_range_is_a_kind_of_its_own(tmp_path: Path) -> None:
    for codec, suffix in (("libvpx-vp9", "webm"), ("libx264", "mp4")):
        for full, name in ((1, "{} yuv420p, plain"), (2, "{} yuv420p of full range, plain")):
            path = corners(tmp_path / f"{full}.{suffix}", range_=full, codec=codec)
            made = hand_over(read_coded(path, codec=codec[3:].replace("vpx-", "").replace("x", "h")), np.array([0]))
            assert str(made.kind) == name.format(made.kind.codec)


def refused(data: bytes, codec: str, wanted: list[int]) -> str:
    with pytest.raises(Unsuitable) as error:
        hand_over(read_coded(data, codec=codec), np.array(wanted))
    return str(error.value)


def test_what_cannot_be_made_so_is_left_to_pyav(tmp_path: Path) -> None:
    packets = hidden_vp9(24)
    assert refused(webm([*packets[:14], SHOW_AGAIN, *packets[14:]]), "vp9", [20]) == "a picture is shown again"
    check_before = hand_over(read_coded(webm([*packets[:14], SHOW_AGAIN]), codec="vp9"), np.array([5]))
    assert check_before.frames.tolist() == [5]  # what comes later does not matter
    assert refused(webm(packets[1:]), "vp9", [4]) == "no key frame before the first frame"
    assert refused(webm([*packets, *hidden_vp9(4, width=320)]), "vp9", [26]) == "the size changes"
    assert refused(webm(hidden_vp9(4, height=241), height=241), "vp9", [2]) == "an odd height"
    for codec in ("av1", "mjpeg", "mpeg4", "hevc"):
        assert refused(b"", codec, [0]) == f"{codec} is decoded by PyAV"
    assert refused(moving("libx264", "mpegts"), "h264", [3]) == "packets without times"
    assert refused(moving("libx264", "mp4", **{"x264-params": "interlaced=1"}), "h264", [3]) == "pictures may be fields"
    assert refused(moving("libx264", "mp4", width=130), "h264", [3]) == "less is shown than is coded"


def test_an_edit_list_that_leaves_frames_out_is_left_to_pyav(tmp_path: Path) -> None:
    import shutil
    import subprocess

    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg on this machine")
    (tmp_path / "a.mp4").write_bytes(moving("libx264", "mp4"))
    cut = ["ffmpeg", "-loglevel", "error", "-ss", "0.5", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4"]
    subprocess.run(cut, check=True)
    assert refused((tmp_path / "b.mp4").read_bytes(), "h264", [3]) == "an edit list leaves frames out"


def test_damage_says_so() -> None:
    with pytest.raises(BadVideo, match="unreadable"):
        read_coded(b"no video", codec="vp9")
