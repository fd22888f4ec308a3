"""One clip, repacked: frames, times, colors and flags are right for every kind of source."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.pipelines.hand_over import hand_over, read_coded
from ssv2rt.pipelines.nvdec_limits import EVERYWHERE, takes
from ssv2rt.repack.encode import Task, repack_clip
from ssv2rt.repack.settings import CODECS, Settings, settings_for
from ssv2rt.video.container import BadVideo
from ssv2rt.video.probe import VideoInfo, probe
from tests.conftest import CORNERS, corners, numbered_video
from tests.faults import largest_file
from tests.video.clips import hidden_vp9, webm
from tests.video.corpus import KINDS, encode, shown

DATA = Path(__file__).parents[1] / "data"


def repacked(source: Path, settings: Settings) -> tuple[VideoInfo, VideoInfo, Path]:
    """Source, copy, and the copy's file."""
    info = probe(source)
    target = source.with_name(f"{source.stem} {settings.codec}{settings.coding.suffix}")
    facts = repack_clip(Task(source, target, info), source.with_name("x.partial"), settings)
    assert facts["status"] == "ok", facts
    assert (facts["width"], facts["height"]) == (info.width, info.height), "crops refer to the source's frames"
    assert not source.with_name("x.partial").exists()
    return info, probe(target), target


def rgb(path: Path) -> np.ndarray:
    """uint8 (T, H, W, 3): what FFmpeg shows, not turned."""
    return np.stack([frame.to_ndarray(format="rgb24") for frame in shown(path.read_bytes())])


def stamps(path: Path) -> list[float]:
    """Seconds of the packets from the first, in the order of display."""
    with av.open(str(path)) as container:
        found = sorted(float(p.pts * p.time_base) for p in container.demux(video=0) if p.size and p.pts is not None)
    return [stamp - found[0] for stamp in found]


SOURCES = ["vp9 hidden.webm", "h264 open.mp4", "mpeg2.ts", "prores.mov", "png.mov", "gif.gif", "mjpeg.avi", "flv1.flv"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_is_there_with_its_time_and_its_picture(tmp_path: Path, name: str, codec: str) -> None:
    source = tmp_path / name
    kind, suffix = name.split(".")
    source.write_bytes(
        webm(hidden_vp9(20, width=107, height=64), 107, 64) if kind == "vp9 hidden" else encode(KINDS[kind], suffix, 20)
    )
    before, after, target = repacked(source, settings_for(codec, short_side=240, quality=2 if codec == "mjpeg" else 10))
    assert before.frames == after.frames == 20
    assert abs(before.duration - after.duration) < 0.003 and not after.variable and not after.rotation
    if kind != "gif":  # whose delays are hundredths of a second
        assert np.allclose(stamps(source), stamps(target), atol=0.0011)
    a, b = rgb(source), rgb(target)
    if a.shape != b.shape:
        a = np.stack(
            [av.VideoFrame.from_ndarray(x).reformat(b.shape[2], b.shape[1]).to_ndarray(format="rgb24") for x in a]
        )
    assert np.abs(a.astype(int) - b).mean() < (16 if kind == "gif" else 4)  # whose colors are dithered
    wrong = np.abs(a.astype(int) - np.roll(b, 1, axis=0)).mean((1, 2, 3))
    right = np.abs(a.astype(int) - b).mean((1, 2, 3))
    assert (right < wrong).all(), "no frame takes the place of another"


@pytest.mark.parametrize("codec", ["h264", "h264-intra"])
def test_h264_has_nothing_that_a_hardware_decoder_cannot_take(tmp_path: Path, codec: str) -> None:
    source = tmp_path / "a.webm"
    source.write_bytes(webm(hidden_vp9(30)))
    _, after, target = repacked(source, settings_for(codec, short_side=128))
    assert (after.width, after.height, after.pixels) == (224, 128, "yuv420p") and takes(after, EVERYWHERE)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert not stream.codec_context.has_b_frames
        shape = stream.sample_aspect_ratio * Fraction(224, 128)
        assert abs(float(shape) - 427 / 240) < 0.01, "players show the shape of the source"
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [p.pts for p in packets] == [p.dts for p in packets]
    step = 1 if codec == "h264-intra" else 8
    assert [p.is_keyframe for p in packets] == [number % step == 0 for number in range(30)]
    video = read_coded(target.read_bytes(), codec="h264", pixels=after.pixels)
    for wanted in ([0], [29], [7, 8, 20], list(range(30))):
        handed = hand_over(video, np.array(wanted))  # raises if the pictures cannot be handed to NVDEC
        assert handed.kind.order == "plain" and handed.frames.tolist() == wanted
    assert {int(frame.pict_type) for frame in shown(target.read_bytes())} <= {1, 2}, "only I and P frames"


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize(("space", "range_"), [(5, 1), (1, 1), (5, 2)])
def test_rotation_and_color_are_those_that_the_source_is_shown_with(
    tmp_path: Path, degrees: int, space: int, range_: int
) -> None:
    source = corners(tmp_path / "a.mp4", degrees, space, range_)
    around = ["top left", "bottom left", "bottom right", "top right"]
    for codec in ("mjpeg", "h264"):
        _, after, target = repacked(source, settings_for(codec, short_side=48))
        assert (
            after.rotation == 0 and after.matrix == "bt601" and (after.width < after.height) == (degrees in (90, 270))
        )
        picture = rgb(target)[1]
        high, wide = picture.shape[:2]
        at = {"top": high // 4, "bottom": 3 * high // 4, "left": wide // 4, "right": 3 * wide // 4}
        for number, place in enumerate(around):
            y, x = place.split()
            shown_there = around[(number - degrees // 90) % 4]
            assert np.abs(picture[at[y], at[x]].astype(int) - CORNERS[shown_there]).max() < 16, (codec, place)


def uneven(path: Path, times: list[int]) -> Path:
    """A video whose frame k is at a time in thousandths of a second."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "x264-params": "bframes=0"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 7 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_uneven_times_are_kept_unless_a_rate_is_given(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1000, 1040, 1080]
    source = uneven(tmp_path / "a.mkv", times)
    for codec in CODECS:
        before, after, _ = repacked(source, settings_for(codec, short_side=48))
        assert before.times is not None and after.times is not None
        assert np.allclose(before.times, after.times, atol=0.0011) and np.allclose(after.times, np.array(times) / 1000)
    _, slower, target = repacked(source, settings_for("mjpeg", short_side=48, fps=5.0))
    assert slower.times is None and abs(slower.rate - 5) < 0.01
    numbers = [round((frame.mean() - 20) / 7) for frame in rgb(target)]
    assert numbers == [0, 2, 2, 4, 4, 5], "at 0, 200, 400, ... ms those frames are shown"
    _, same, _ = repacked(source, settings_for("mjpeg", short_side=48, fps=60.0))
    assert same.frames == len(times), "a rate does not repeat frames"


def test_single_frames_odd_sizes_and_ten_bits(tmp_path: Path) -> None:
    one = numbered_video(tmp_path / "one.mp4", "libx264", frames=1)
    odd = tmp_path / "odd.webm"
    odd.write_bytes(webm(hidden_vp9(3, width=61, height=47), 61, 47))
    deep = tmp_path / "deep.webm"
    deep.write_bytes((DATA / "vp9_10bit.webm").read_bytes())
    for codec in CODECS:
        assert repacked(one, settings_for(codec, short_side=48))[1].frames == 1
        after = repacked(odd, settings_for(codec, short_side=48))[1]
        assert (after.width, after.height) == ((61, 47) if codec == "mjpeg" else (64, 48))
        before, after, target = repacked(deep, settings_for(codec, short_side=4096))
        assert after.frames == before.frames and after.pixels in ("yuvj420p", "yuv420p")
        a = np.stack([f.to_ndarray(format="rgb24") for f in shown(deep.read_bytes())])
        if a.shape == (b := rgb(target)).shape:
            assert np.abs(a.astype(int) - b).mean() < 4


def test_alpha_is_dropped(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., 0], picture[:, :32, 3] = 200, 255
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("png", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode(None))
    (tmp_path / "a.mov").write_bytes(buffer.getvalue())
    for codec in ("mjpeg", "h264"):
        _, after, target = repacked(tmp_path / "a.mov", settings_for(codec, short_side=48))
        assert after.frames == 3 and np.abs(rgb(target).astype(int) - (200, 0, 0)).max() < 16


def test_damaged_clips_have_a_reason_and_no_file(tmp_path: Path) -> None:
    whole = numbered_video(tmp_path / "a.mkv", "libx264", frames=40, gop=10)
    data, info = bytearray(whole.read_bytes()), probe(whole)
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    whole.write_bytes(data)
    target = tmp_path / "b.mkv"
    settings = settings_for("mjpeg", short_side=48)
    assert repack_clip(Task(whole, target, info), tmp_path / "x", settings)["status"] in ("corrupt", "truncated")
    whole.write_bytes(data[:3000])
    assert repack_clip(Task(whole, target, info), tmp_path / "x", settings)["status"] in ("corrupt", "truncated")
    whole.unlink()
    assert repack_clip(Task(whole, target, info), tmp_path / "x", settings)["status"] == "missing"
    assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_call_and_costs_no_clip(tmp_path: Path) -> None:
    source = numbered_video(tmp_path / "a.mkv", "mjpeg", frames=80)
    for codec, size in (("mjpeg", 4000), ("mjpeg", 33_000), ("h264", 1000), ("h264", 4000)):
        with largest_file(size), pytest.raises(UserError, match="cannot write '.*b.mkv': File too large"):
            repack_clip(
                Task(source, tmp_path / "b.mkv", probe(source)), tmp_path / "x", settings_for(codec, short_side=48)
            )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv"]


def test_files_that_ssv2_has_are_probed_like_their_copies(tmp_path: Path, real_videos: Path) -> None:
    for source in sorted(real_videos.iterdir()):
        try:
            info = probe(source)
        except BadVideo:
            continue
        target = tmp_path / f"{source.stem}.mkv"
        facts = repack_clip(Task(source, target, info), tmp_path / "x", settings_for("mjpeg", short_side=64))
        after = probe(target)
        assert facts["status"] == "ok" and after.frames == info.frames and after.variable == info.variable
        assert abs(after.duration - info.duration) < 0.01
