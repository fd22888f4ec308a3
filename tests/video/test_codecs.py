"""Decoded frames beside PyAV's own, for every codec, size, color and container that people bring."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.container import BadVideo
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoInfo, probe
from tests.conftest import CORNERS, corners, frame_numbers, numbered_video
from tests.video.corpus import own_priority

CODECS = {
    "vp8": ("libvpx", "webm", "yuv420p"),
    "vp9": ("libvpx-vp9", "webm", "yuv420p"),
    "vp9 in mp4": ("libvpx-vp9", "mp4", "yuv420p"),
    "vp9 4:4:4": ("libvpx-vp9", "webm", "yuv444p"),
    "av1": ("libsvtav1", "mp4", "yuv420p"),
    "av1 10 bit": ("libsvtav1", "webm", "yuv420p10le"),
    "h264": ("libx264", "mp4", "yuv420p"),
    "h264 10 bit": ("libx264", "mkv", "yuv420p10le"),
    "h264 transport stream": ("libx264", "ts", "yuv420p"),
    "hevc": ("libx265", "mp4", "yuv420p"),
    "hevc 10 bit": ("libx265", "mkv", "yuv420p10le"),
    "mpeg4": ("mpeg4", "avi", "yuv420p"),
    "mpeg4 in mp4": ("mpeg4", "mp4", "yuv420p"),
    "mjpeg": ("mjpeg", "avi", "yuvj420p"),
}
EVEN_ONLY = {"h264", "h264 10 bit", "h264 transport stream", "hevc", "hevc 10 bit", "mjpeg", "av1", "av1 10 bit"}
"""Encoders that take no odd sizes at half color resolution."""


def moving_picture(number: int, width: int, height: int) -> np.ndarray:
    """Smooth colors that move, uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin((x + shift * number) / 20 + k) + np.cos((y - 4 * number) / 16 + 2 * k)
        for k, shift in enumerate((2, 4, 6))
    ]
    return (127 + 55 * np.stack(waves, axis=-1)).astype(np.uint8)


@own_priority()
def write(path: Path, codec: str, pixels: str, *, width: int = 96, height: int = 64, frames: int = 20) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.gop_size = 8
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        if codec == "libsvtav1":
            stream.options = {"preset": "12", "svtav1-params": "lp=1"}
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(moving_picture(number, width, height), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def whole(path: Path, frames: list[int], info: VideoInfo) -> ClipRequest:
    """The given frames, uncut."""
    crop = CropBox(0, 0, info.width, info.height)
    return ClipRequest("x", path, np.array([frames], np.int32), (crop,), (info.width, info.height), info.frames)


def by_pyav(path: Path, wanted: list[int], size: int) -> np.ndarray:
    """The frames in order of decoding, in RGB by swscale at its most exact, and scaled there too."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    exact = av.video.reformatter.Interpolation.BILINEAR | 0x2000 | 0x40000  # full chroma, accurate rounding
    pictures = [frames[k].reformat(size, size, "rgb24", interpolation=exact).to_ndarray() for k in wanted]
    return np.stack(pictures)


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, (96, 64)) for name in CODECS] + [(name, (97, 65)) for name in CODECS if name not in EVEN_ONLY],
)
def test_frames_are_those_of_pyav(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    codec, suffix, pixels = CODECS[name]
    path = write(tmp_path / f"a.{suffix}", codec, pixels, width=size[0], height=size[1])
    info = probe(path)
    assert (info.frames, info.width, info.height) == (20, *size)
    assert info.rate == pytest.approx(12, rel=0.01) and info.duration == pytest.approx(20 / 12, rel=0.06)
    for wanted in ([0], [19], [3, 4, 9, 17], [2, 2, 11]):
        (clip,) = decode_clips(path, whole(path, wanted, info), size=48)
        assert np.abs(clip.astype(float) - by_pyav(path, wanted, 48)).mean() < 2
    numbers = [3, 4, 9, 17]
    (clip,) = decode_clips(path, whole(path, numbers, info), size=48)
    other = by_pyav(path, [n + 1 for n in numbers], 48)
    assert np.abs(clip.astype(float) - other).mean() > 2  # the neighbors would have been noticed


def test_ten_bit_vp9() -> None:
    path = Path(__file__).parents[1] / "data" / "vp9_10bit.webm"
    info = probe(path)
    assert (info.profile, info.frames, info.width, info.height) == ("Profile 2", 12, 65, 49)
    (clip,) = decode_clips(path, whole(path, [1, 10], info), size=48)
    assert np.abs(clip.astype(float) - by_pyav(path, [1, 10], 48)).mean() < 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_shown_upright(tmp_path: Path, degrees: int) -> None:
    path = corners(tmp_path / "a.mp4", degrees)
    info = probe(path)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((48, 64) if degrees in (90, 270) else (64, 48))
    (clip,) = decode_clips(path, whole(path, [1], info), size=40)
    upright = np.array([[CORNERS["top left"], CORNERS["top right"]], [CORNERS["bottom left"], CORNERS["bottom right"]]])
    expected = np.rot90(upright, degrees // 90)
    seen = clip[0, 10::20, 10::20].astype(int)
    assert np.abs(seen - expected).max() < 8
    half = CropBox(0, 0, info.width // 2, info.height // 2)
    request = ClipRequest("x", path, np.array([[1]], np.int32), (half,), (info.width, info.height), 4)
    (clip,) = decode_clips(path, request, size=16)
    assert np.abs(clip[0, 4:12, 4:12].astype(int) - expected[0, 0]).max() < 8


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
@pytest.mark.parametrize("space", [1, 5])  # BT.709, BT.601
@pytest.mark.parametrize("range_", [1, 2])  # limited, full
def test_colours_follow_their_tags(tmp_path: Path, codec: str, space: int, range_: int) -> None:
    path = corners(tmp_path / ("a.mp4" if codec == "libx264" else "a.webm"), 0, space, range_, codec)
    (clip,) = decode_clips(path, whole(path, [1], probe(path)), size=40)
    seen = [clip[0, y, x].astype(int) for y in (10, 30) for x in (10, 30)]
    assert np.abs(np.array(seen) - np.array(list(CORNERS.values()))).max() < 5


def test_sound_and_several_pictures(tmp_path: Path) -> None:
    """A video with sound in two sizes: the one is used that FFmpeg calls the best."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        small, large = (container.add_stream("libx264", rate=12) for _ in range(2))
        sound = container.add_stream("aac", rate=44100)
        for stream, size in ((small, 32), (large, 64)):
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
        for number in range(10):
            for stream in (small, large):
                gray = np.full((stream.height, stream.width, 3), 20 + 7 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
            noise = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            noise.sample_rate = 44100
            container.mux(sound.encode(noise))
        for stream in (small, large, sound):
            container.mux(stream.encode(None))
    info = probe(path)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert isinstance(best, av.VideoStream)
        assert (info.width, info.height, info.frames, info.streams) == (best.width, best.height, 10, 2)
    (clip,) = decode_clips(path, whole(path, [0, 4, 9], info), size=16)
    assert frame_numbers(clip) == [0, 4, 9]


@pytest.mark.parametrize("film", [True, False])
def test_a_cover_picture_is_no_video(tmp_path: Path, film: bool) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg")
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 320, 320, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        streams = [sound, cover]
        if film:
            streams.append(video := container.add_stream("libx264", rate=12))
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for number in range(10):
                gray = np.full((48, 64, 3), 20 + 7 * number, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((320, 320, 3), np.uint8), format="rgb24")))
        noise = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        noise.sample_rate = 44100
        container.mux(sound.encode(noise))
        for stream in streams:
            container.mux(stream.encode(None))
    if film:
        info = probe(path)
        (clip,) = decode_clips(path, whole(path, [0, 9], info), size=16)
        assert (info.width, info.frames) == (64, 10) and frame_numbers(clip) == [0, 9]
    else:
        with pytest.raises(BadVideo, match="no video stream"):
            probe(path)


def test_a_single_frame_and_thousands(tmp_path: Path) -> None:
    one = numbered_video(tmp_path / "one.mp4", "libx264", frames=1)
    info = probe(one)
    assert info.frames == 1
    (clip,) = decode_clips(one, whole(one, [0] * 4, info), size=16)
    assert frame_numbers(clip) == [0] * 4
    for codec, suffix in (("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")):
        long = numbered_video(tmp_path / f"long.{suffix}", codec, frames=3000, gop=50)
        info = probe(long)
        assert info.frames == 3000
        (clip,) = decode_clips(long, whole(long, [7, 1600, 1601, 2990], info), size=16)
        assert frame_numbers(clip) == [7, 1600 % 32, 1601 % 32, 2990 % 32]


def test_a_large_file_is_read_again_instead_of_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssv2rt.video import seek as packets

    monkeypatch.setattr(packets, "_HELD", 100)
    for codec, suffix in (("libx264", "mp4"), ("libvpx-vp9", "webm")):
        path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=60, gop=10)
        (clip,) = decode_clips(path, whole(path, [3, 17, 18, 55], probe(path)), size=16)
        assert frame_numbers(clip) == [3, 17, 18, 55 % 32]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_only_what_is_needed_is_decoded(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where frames are coded in another order than they are shown."""
    from ssv2rt.video import decode

    path = numbered_video(tmp_path / "a.mp4", codec, frames=60, gop=10)
    seen = []

    def counted(*args: object) -> object:
        for part in needed(*args):
            seen.extend(part.numbers)
            yield part

    needed = decode.parts_needed
    monkeypatch.setattr(decode, "parts_needed", counted)
    (clip,) = decode_clips(path, whole(path, [25, 52], probe(path)), size=16)
    assert frame_numbers(clip) == [25, 52 % 32]
    assert len(seen) <= 22


def test_uneven_times_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    when = [0, 100, 120, 140, 600, 1000, 1040]  # milliseconds
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, stamp in enumerate(when):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 7 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.variable and info.times is not None
    assert np.allclose(info.times * 1000, when, atol=1)
    assert not probe(numbered_video(tmp_path / "b.mkv", "mpeg4", frames=20)).variable


def test_key_frames_that_are_none_are_found_out(tmp_path: Path) -> None:
    """x264's intra refresh calls frames key frames from which decoding gives nothing for a while."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 + 7 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for wanted in ([8], [8, 9, 10, 15], [17]):
        (clip,) = decode_clips(path, whole(path, wanted, probe(path)), size=16)
        assert frame_numbers(clip) == wanted


def test_an_avi_with_gaps_is_whole(tmp_path: Path) -> None:
    source = numbered_video(tmp_path / "a.avi", "mpeg4", frames=20, gop=1)
    with av.open(str(source)) as before, av.open(str(tmp_path / "b.avi"), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(p for p in before.demux(video=0) if p.size):
            if number not in range(5, 9):
                packet.stream = stream
                after.mux(packet)
    info = probe(tmp_path / "b.avi")
    assert info.frames == 16
    (clip,) = decode_clips(tmp_path / "b.avi", whole(tmp_path / "b.avi", [4, 5, 15], info), size=16)
    assert frame_numbers(clip) == [4, 9, 19]


def test_names_that_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered_video(tmp_path / "x.mp4", "libx264", frames=5).rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe(Path("12:30.mp4")).frames == 5


def test_times_that_are_all_the_same_or_negative_lose_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeking to time 0 leads behind the first packets there; the file is opened anew instead, whatever its size."""
    from ssv2rt.video import seek

    for name, times in (("same", [0] * 12), ("negative", range(-6, 6))):
        path = tmp_path / f"{name}.mkv"
        with (
            av.open(str(numbered_video(tmp_path / "a.mp4", "mpeg4", frames=12))) as source,
            av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out,
        ):
            stream = out.add_stream_from_template(source.streams.video[0])
            packets = [packet for packet in source.demux(video=0) if packet.size]
            for packet, time in zip(packets, times, strict=True):
                packet.pts = packet.dts = 100 * time
                packet.time_base, packet.stream = Fraction(1, 1000), stream
                out.mux(packet)
        with av.open(str(path)) as container:
            true = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
        for held in (64 << 20, 100):
            monkeypatch.setattr(seek, "_HELD", held)
            for wanted in ([0], [1, 7], [11], [*range(12)]):
                seen = dict(seek.frames_needed(path, len(true), np.array(wanted)))
                assert [seen[n].to_ndarray(format="gray").mean() for n in wanted] == [true[n] for n in wanted], name
