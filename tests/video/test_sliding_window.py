"""Windows that slide over a video, beside a reference that holds every frame in a list."""

import collections
import functools
import io
import math
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipes import Clip, Sampling
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.container import BadVideo
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from ssv2rt.video.sampling import frame_positions
from ssv2rt.video.sliding_window import TimeWindow, slide
from tests.conftest import CORNERS, corners, frame_numbers, numbered_video
from tests.video import corpus
from tests.video.corpus import encode, remux

PLAIN = Clip(frames=4, size=16, center_crop=1.0)
LIVE = {"live": "1"}
"""Of the WebM muxer: no length is declared."""


def film(
    path: Path,
    codec: str,
    when: list[int],
    *,
    tick: Fraction = Fraction(1, 1000),
    options: dict[str, str] | None = None,
    size: int = 32,
) -> Path:
    """A video whose frame k is gray of value 20 + 7k (to 32, then anew), and appears after `when[k]` ticks."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25 if tick == Fraction(1, 1000) else 1 / tick)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        for number, stamp in enumerate(when):
            gray = np.full((size, size, 3), 20 + 7 * (number % 32), np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24")
            frame.pts, frame.time_base = stamp, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@functools.cache
def film_bytes(folder: Path, kind: str, frames: int, rate: Fraction) -> bytes:
    codec, suffix, options = {
        "vp9": ("libvpx-vp9", "webm", None),
        "live": ("libvpx-vp9", "webm", LIVE),
        "h264": ("libx264", "mp4", None),
        "mpeg4": ("mpeg4", "mkv", None),
    }[kind]
    path = folder / f"{kind} {frames} {rate}.{suffix}".replace("/", " of ")
    return film(path, codec, list(range(frames)), tick=1 / rate, options=options).read_bytes()


def reference(content: bytes, clip: Clip, window: float, hop: float, declared: bool) -> list[tuple]:
    """What `slide` should give: (start, end, frames in it, frames shown by each moment), times in microseconds."""
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        rate, tick = float(stream.average_rate), stream.time_base
        frames = list(container.decode(stream))
        duration = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 10**6)
    times = np.array([round((f.pts - frames[0].pts) * tick * 10**6) for f in frames])
    numbers = frame_numbers(np.stack([f.to_ndarray(format="rgb24") for f in frames]))
    stays = round(frames[-1].duration * tick * 10**6)
    end = int(times[-1]) + stays
    result = []
    for k in range(10**6):
        start = round(k * hop * 10**6)
        stop = start + round(window * 10**6)
        half = min(stays, round(10**6 / rate)) // 2  # of a frame: not worth a window
        if start >= end - half:
            break
        upto = stop
        if declared and start < round(duration * 10**6) < stop and stop >= end - half:
            upto = round(duration * 10**6)
        rows = []
        for v in range(clip.views[0]):
            place = frame_positions(
                clip.sampling,
                extent=(upto - start) / 10**6,
                length=clip.frames,
                stride=clip.stride,
                rate=clip.rate if clip.timing == "time" else rate,
                view=v,
                views=clip.views[0],
            )
            at = [sum(times <= start + min(round(p * 10**6), upto - start - 1)) - 1 for p in place]
            rows.append([numbers[i] for i in at])
        seen = int(sum((start <= times) & (times < stop)))
        result.append((start, min(stop, end), seen, rows))
        if stop >= end - half:
            break
    return result


def as_rows(given: list[TimeWindow], clip: Clip) -> list[tuple]:
    temporal_clips, spatial_crops = clip.views
    rows = []
    for number, window in enumerate(given):
        assert window.number == number
        assert window.clips.shape == (temporal_clips * spatial_crops, clip.frames, clip.size, clip.size, 3)
        shown = [frame_numbers(clips) for clips in window.clips]
        assert all(
            shown[v * spatial_crops + s] == shown[v * spatial_crops]
            for v in range(temporal_clips)
            for s in range(spatial_crops)
        )
        rows.append((round(window.start * 10**6), round(window.end * 10**6), window.frames, shown[::spatial_crops]))
    return rows


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_frames_are_those_of_the_reference(films: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["vp9", "live", "h264", "mpeg4"]))
    frames = data.draw(st.integers(1, 40))
    rate = data.draw(st.sampled_from([Fraction(12), Fraction(25), Fraction(30000, 1001), Fraction(5)]))
    length = float(frames / rate)
    window = data.draw(st.floats(0.05, 1.5)) * length + 0.01
    hop = data.draw(st.floats(0.1, 1.5)) * window
    clip = Clip(
        frames=data.draw(st.integers(1, 9)),
        size=16,
        center_crop=1.0,
        sampling=data.draw(st.sampled_from(get_args(Sampling))),
        stride=data.draw(st.sampled_from([0.5, 1.0, 2.0, 3.7])),
        timing=data.draw(st.sampled_from(["index", "time"])),
        views=data.draw(st.sampled_from([(1, 1), (2, 1), (2, 3)])),
    )
    content = film_bytes(films, kind, frames, rate)
    expected = reference(content, clip, window, hop, declared=kind != "live")
    assert as_rows(list(slide(content, clip, window=window, hop=hop)), clip) == expected


def test_by_hand(tmp_path: Path) -> None:
    """12 frames a second for 2.5 s, windows of a second: the last is cut short, and its places are in what is left."""
    path = numbered_video(tmp_path / "a.mp4", "libx264", frames=30)
    rows = as_rows(list(slide(path, PLAIN, window=1, hop=0.75)), PLAIN)
    assert rows == [
        (0, 1_000_000, 12, [[1, 4, 7, 10]]),
        (750_000, 1_750_000, 12, [[10, 13, 16, 19]]),
        (1_500_000, 2_500_000, 12, [[19, 22, 25, 28]]),
    ]
    assert as_rows(list(slide(path, PLAIN, window=2, hop=1.5)), PLAIN)[1:] == [
        (1_500_000, 2_500_000, 12, [[19, 22, 25, 28]])
    ]
    gaps = as_rows(list(slide(path, PLAIN, window=0.5, hop=1.5)), PLAIN)
    assert gaps == [(0, 500_000, 6, [[0, 2, 3, 5]]), (1_500_000, 2_000_000, 6, [[18, 20, 21, 23]])]


@pytest.mark.parametrize(("window", "hop"), [(0, 1), (1, 0), (-1, 1), (1, -1), (math.nan, 1), (1, math.inf)])
def test_windows_that_are_none(tmp_path: Path, window: float, hop: float) -> None:
    with pytest.raises(ValueError, match="at least 0.001 seconds"):
        slide(tmp_path / "none.mp4", PLAIN, window=window, hop=hop)


@pytest.mark.parametrize("views", [(1, 1), (2, 3)])
@pytest.mark.parametrize("sampling", get_args(Sampling))
@pytest.mark.parametrize(
    ("codec", "suffix"), [("libvpx-vp9", "webm"), ("libx264", "mp4"), ("mpeg4", "avi"), ("libx264", "ts")]
)
def test_a_short_video_gives_what_scoring_it_whole_gives(
    tmp_path: Path, codec: str, suffix: str, sampling: str, views: tuple[int, int]
) -> None:
    path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=29, gop=8)
    clip = Clip.model_validate({"frames": 5, "size": 32, "sampling": sampling, "views": views})
    (only,) = slide(path, clip, window=4, hop=2)
    info = probe(path)
    assert (only.start, only.frames) == (0, 29) and only.end == pytest.approx(29 / 12, abs=0.002)
    assert np.array_equal(only.clips, decode_clips(path, evaluation_request("a", path, info, clip=clip), size=32))


def test_uneven_frames_are_taken_by_time(tmp_path: Path) -> None:
    when = [0, 100, 120, 140, 600, 1000, 1040, 2300, 2320, 2900]
    path = film(tmp_path / "a.mkv", "mpeg4", when)
    given = list(slide(path, PLAIN, window=1, hop=1))
    assert [w.frames for w in given] == [5, 2, 3]
    # 125, 375, 625 and 875 ms of each window; of the second nothing new is seen but at its beginning
    assert [frame_numbers(w.clips[0])[:2] for w in given] == [[2, 3], [6, 6], [6, 8]]
    assert [frame_numbers(w.clips[0]) for w in given[:2]] == [[2, 3, 4, 4], [6, 6, 6, 6]]
    by_time = PLAIN.model_copy(update={"timing": "time"})
    (only,) = slide(path, by_time, window=10, hop=1)
    assert np.array_equal(
        only.clips, decode_clips(path, evaluation_request("a", path, probe(path), clip=by_time), size=16)
    )


def test_a_long_still_is_many_windows(tmp_path: Path) -> None:
    """A frame that is shown for minutes; and one that a damaged time would have shown for days."""
    path = film(tmp_path / "a.mkv", "mpeg4", [0, 500, 600_000, 600_500])
    given = list(slide(path, PLAIN, window=2, hop=1))
    assert len(given) == 600
    assert [w.frames for w in given] == [2] + [0] * 598 + [2]
    assert all(frame_numbers(w.clips[0]) == [1, 1, 1, 1] for w in given[1:598])
    path = film(tmp_path / "b.mkv", "mpeg4", [0, 500, 1000, 1500, 90_000_000, 90_000_500])
    given = list(slide(path, PLAIN, window=2, hop=1))
    assert sum(w.frames for w in given[::2]) == 6 and len(given) < 10


def test_undeclared_length(tmp_path: Path) -> None:
    """The last window's places are spread over a whole one, and those beyond the end show the last frame."""
    told = film(tmp_path / "told.webm", "libvpx-vp9", [40 * k for k in range(70)])
    live = film(tmp_path / "live.webm", "libvpx-vp9", [40 * k for k in range(70)], options=LIVE)
    with av.open(str(live)) as container:
        assert container.duration is None
    one, other = (list(slide(p, PLAIN, window=1, hop=1)) for p in (told, live))
    assert [(w.start, w.end, w.frames) for w in other] == [(0, 1, 25), (1, 2, 25), (2, 2.8, 20)]
    assert [(w.start, w.end, w.frames) for w in one] == [(w.start, w.end, w.frames) for w in other]
    assert all(np.array_equal(a.clips, b.clips) for a, b in zip(one[:2], other[:2], strict=True))
    assert frame_numbers(one[2].clips[0]) == [k % 32 for k in (52, 57, 62, 67)]
    assert frame_numbers(other[2].clips[0]) == [k % 32 for k in (53, 59, 65, 69)]


def declaring(path: Path, seconds: float) -> bytes:
    """A Matroska file whose header says it is so long."""
    content = path.read_bytes()
    at = content.index(b"\x44\x89\x88") + 3
    assert struct.unpack(">d", content[at : at + 8])[0] == pytest.approx(2800, abs=1)
    return content[:at] + struct.pack(">d", 1000 * seconds) + content[at + 8 :]


def test_wrong_declarations(tmp_path: Path) -> None:
    path = film(tmp_path / "a.webm", "libvpx-vp9", [40 * k for k in range(70)])
    live = film(tmp_path / "live.webm", "libvpx-vp9", [40 * k for k in range(70)], options=LIVE)
    expected = as_rows(list(slide(live, PLAIN, window=1, hop=0.5)), PLAIN)
    for seconds in (0.3, 1.4, 2.6):  # too little: as if it said nothing
        assert as_rows(list(slide(declaring(path, seconds), PLAIN, window=1, hop=0.5)), PLAIN) == expected
    too_much = as_rows(list(slide(declaring(path, 4), PLAIN, window=1, hop=0.5)), PLAIN)
    assert too_much == expected  # nothing is cut off: the file is as large as it declares
    (whole, almost) = (list(slide(declaring(path, s), PLAIN, window=4, hop=1)) for s in (2.8, 2.84))
    assert len(whole) == len(almost) == 1 and almost[0].end == whole[0].end == 2.8


def packet_places(content: bytes) -> list[tuple[int, int]]:
    """Offset and size of every packet of a file."""
    with av.open(io.BytesIO(content)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]


def in_kind(path: Path, codec: str, suffix: str) -> bytes:
    """12 s of numbered frames at 12 fps with a key frame each second; an MP4 has its index at the beginning."""
    made = numbered_video(path, codec, frames=120, gop=12)
    if suffix != "mp4":
        return made.read_bytes()
    fast = path.with_name("fast.mp4")
    with av.open(str(made)) as before, av.open(str(fast), "w", options={"movflags": "faststart"}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = stream
                after.mux(packet)
    return fast.read_bytes()


KINDS = pytest.mark.parametrize(
    ("codec", "suffix"), [("libvpx-vp9", "webm"), ("libx264", "mkv"), ("libx264", "mp4"), ("mpeg4", "avi")]
)


@pytest.mark.parametrize("threads", [1, 3])
@KINDS
def test_what_is_before_a_cut_is_given(tmp_path: Path, codec: str, suffix: str, threads: int) -> None:
    content = in_kind(tmp_path / f"a.{suffix}", codec, suffix)
    whole = list(slide(content, PLAIN, window=1, hop=0.5, threads=threads))
    assert len(whole) == 19
    position, size = packet_places(content)[60]
    seen: list[TimeWindow] = []
    with pytest.raises(BadVideo, match="^truncated$"):
        seen.extend(slide(content[: position + size // 2], PLAIN, window=1, hop=0.5, threads=threads))
    assert 7 <= len(seen) <= 10  # the cut is at 5 s
    good = [window for window in seen if window.clips is not None]
    assert len(good) >= 7
    for one, other in zip(good, whole, strict=False):
        assert (one.start, one.end, one.frames) == (other.start, other.end, other.frames)
        assert np.array_equal(one.clips, other.clips)


@pytest.mark.parametrize("threads", [1, 3])
@KINDS
def test_windows_go_on_behind_damage(tmp_path: Path, codec: str, suffix: str, threads: int) -> None:
    """Windows have no clips only from the damaged packet to the next key frame, a second later at most."""
    content = in_kind(tmp_path / f"a.{suffix}", codec, suffix)
    whole = list(slide(content, PLAIN, window=1, hop=0.5, threads=threads))
    position, size = packet_places(content)[64]  # at 5.3 s
    position, size = position + 4, size - 4  # behind what Matroska puts before a picture
    noise = np.random.default_rng(0).bytes(size)
    broken = content[:position] + noise + content[position + size :]
    seen = list(slide(broken, PLAIN, window=1, hop=0.5, threads=threads))
    assert [(one.number, one.start, one.end) for one in seen] == [(w.number, w.start, w.end) for w in whole]
    damaged = [window for window in seen if window.clips is None]
    assert 1 <= len(damaged) <= 5
    assert all(window.end > 4.5 and window.start < 6.5 for window in damaged)
    for one, other in zip(seen, whole, strict=True):
        if one.end < 4.5 or one.start > 6.5:
            assert np.array_equal(one.clips, other.clips)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "suffix"), [("vp9", "webm"), ("hevc", "mp4"), ("hevc open", "mkv"), ("mpeg2", "mkv"), ("flv1", "flv")]
)
def test_damage_is_confined_to_its_group_of_pictures(name: str, suffix: str, threads: int) -> None:
    """Also in the first and in the last packet, and where a decoder leaves pictures out and says nothing."""
    content = remux(encode(corpus.KINDS[name], suffix, 72, gop=12), suffix)
    with av.open(io.BytesIO(content)) as container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    tick = 0.48 / (next(pts for pts, key in packets[1:] if key) - packets[0][0])  # a key frame each 0.48 s
    whole = list(slide(content, PLAIN, window=0.24, hop=0.12, threads=threads))
    assert whole[-1].end == pytest.approx(2.88, abs=0.01)
    for hurt in (0, 31, 36, len(packets) - 1):

        def noise(number: int, packet: av.Packet, hurt: int = hurt) -> bool:
            if number == hurt:
                packet.update(np.random.default_rng(1).bytes(packet.size))
            return True

        broken = remux(content, suffix, noise)
        seen = list(slide(broken, PLAIN, window=0.24, hop=0.12, threads=threads))
        assert [(one.start, one.end) for one in seen] == [(one.start, one.end) for one in whole], hurt
        begin = min(pts for pts, _ in packets[hurt : hurt + 6]) - packets[0][0]
        end = next((pts for pts, key in packets[hurt + 1 :] if key), 1e9) - packets[0][0]
        damaged = [one.number for one in seen if one.clips is None]
        assert damaged, hurt
        for one, other in zip(seen, whole, strict=True):
            if one.end < begin * tick or one.start > end * tick:
                assert one.clips is not None and np.array_equal(one.clips, other.clips), (hurt, one)


def test_where_reading_stops_at_damage_the_rest_is_damaged(tmp_path: Path) -> None:
    """FFmpeg finds no way on in a Matroska file of one cluster, and calls it the end."""
    content = in_kind(tmp_path / "a.webm", "libvpx-vp9", "webm")
    position, _ = packet_places(content)[64]
    broken = content[:position] + bytes(4) + content[position + 4 :]  # no track has the number 0
    with pytest.raises(BadVideo, match="^corrupt$"):
        probe(broken)
    seen = list(slide(broken, PLAIN, window=1, hop=0.5))
    assert len(seen) == 19 and seen[-1].end == 10
    assert [window.clips is None for window in seen] == [False] * 9 + [True] * 10


BREAK = """
import sys
from pathlib import Path
from ssv2rt.video.container import BadVideo
from ssv2rt.video.sliding_window import slide
from ssv2rt.core.recipes import Clip
from tests.pipelines.test_hostile import broken
bad = 0
for name, content in broken(Path(sys.argv[1]).read_bytes(), 90):
    try:
        for window in slide(content, Clip(frames=4, size=16), window=1, hop=0.5, threads=3):
            pass
    except BadVideo:
        bad += 1
print(bad)
"""


def test_damage_that_several_threads_meet_ends_nothing_but_the_video(tmp_path: Path) -> None:
    """Each has its errors to tell while the decoder is closed."""
    root = Path(__file__).parents[2]
    for codec, suffix in (("libvpx-vp9", "webm"), ("libx264", "mkv")):
        path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=60, gop=10)
        done = subprocess.run(
            [sys.executable, "-c", BREAK, path], capture_output=True, text=True, check=True, timeout=120, cwd=root
        )
        assert 50 < int(done.stdout) <= 90 and not done.stderr


def test_threads_change_no_pixel(real_videos: Path) -> None:
    clip = Clip(frames=8, size=64, views=(2, 1))
    for name in ("ssv2_166766.webm", "arm_wrestling_h264.mp4", "test_mpeg4.avi"):
        one, three = (list(slide(real_videos / name, clip, window=1, hop=0.7, threads=t)) for t in (1, 3))
        assert len(one) == len(three) > 1
        for a, b in zip(one, three, strict=True):
            assert repr(a) == repr(b) and np.array_equal(a.clips, b.clips)


def test_each_frame_is_decoded_once_and_cut_at_most_once(tmp_path: Path) -> None:
    """Counted by the interpreter's own profiler: calls of FFmpeg's decoder, one a packet, and of `CropScaler.cut`."""
    path = numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=240)
    calls: collections.Counter[str] = collections.Counter()

    def count(frame: object, event: str, argument: object) -> None:
        if event == "c_call":
            calls[getattr(argument, "__qualname__", "")] += 1
        elif event == "call":
            calls[frame.f_code.co_qualname] += 1  # type: ignore[attr-defined]

    windows = slide(path, Clip(frames=16, size=16), window=4, hop=0.5)
    sys.setprofile(count)
    try:
        given = list(windows)
    finally:
        sys.setprofile(None)
    assert len(given) == 33 and sum(w.clips.shape[1] for w in given) == 528
    assert calls["VideoCodecContext.decode"] == 241  # and once for what it keeps back
    assert 60 < calls["CropScaler.cut"] <= 240


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_shown_upright(tmp_path: Path, degrees: int) -> None:
    path = corners(tmp_path / "a.mp4", degrees)
    upright = np.array([[CORNERS["top left"], CORNERS["top right"]], [CORNERS["bottom left"], CORNERS["bottom right"]]])
    clip = Clip(frames=2, size=48, center_crop=1.0)
    (only,) = slide(path, clip, window=1, hop=1)
    seen = only.clips[0, 0, 12::24, 12::24].astype(int)
    assert np.abs(seen - np.rot90(upright, degrees // 90)).max() < 8
    spatial_crops = clip.model_copy(update={"views": (1, 3)})
    (only,) = slide(path, spatial_crops, window=1, hop=1)
    request = evaluation_request("a", path, probe(path), clip=spatial_crops)
    assert np.array_equal(only.clips, decode_clips(path, request, size=48))


def test_a_change_of_size_in_mid_stream(tmp_path: Path) -> None:
    """VP9 may change its frame size at a key frame: two files' packets in one stream, shown through one window."""
    both, count = tmp_path / "both.webm", 0
    with av.open(str(both), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
        for width, height in ((64, 48), (128, 96)):
            path = numbered_video(tmp_path / f"{width}.webm", "libvpx-vp9", frames=6, width=width, height=height)
            with av.open(str(path)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        copy = av.Packet(bytes(packet))
                        copy.stream, copy.time_base, copy.is_keyframe = stream, stream.time_base, packet.is_keyframe
                        copy.pts = copy.dts = round(count / 12 / stream.time_base)
                        output.mux(copy)
                        count += 1
    for threads in (1, 3):
        (only,) = slide(both, PLAIN, window=1, hop=1, threads=threads)
        assert frame_numbers(only.clips[0]) == [1, 4, 1, 4]


def test_frames_without_times_are_counted(tmp_path: Path) -> None:
    """A bare H.264 stream has no times; FFmpeg takes it for 25 frames a second."""
    path = numbered_video(tmp_path / "a.h264", "libx264", frames=60)
    rows = as_rows(list(slide(path, PLAIN, window=1, hop=1)), PLAIN)
    assert [row[2] for row in rows] == [25, 25, 10]
    assert rows[1] == (1_000_000, 2_000_000, 25, [[28, 34 % 32, 40 % 32, 46 % 32]])


def test_times_that_fall_are_counted_on(tmp_path: Path) -> None:
    """H.264 in an AVI, which has no times for frames that are coded in another order than they are shown."""
    path = numbered_video(tmp_path / "a.avi", "libx264", frames=30)
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    rows = as_rows(list(slide(path, PLAIN, window=0.5, hop=0.5)), PLAIN)
    assert sum(row[2] for row in rows) == 30
    shown = [k for row in rows for k in row[3][0]]
    assert shown == sorted(shown) and all(abs(k - 12 * (0.0625 + 0.125 * i)) <= 5 for i, k in enumerate(shown[:20]))


@pytest.mark.parametrize("codec", ["libvpx-vp9 webm", "libx264 mkv", "libx264 flv"])
def test_a_clock_that_does_not_start_at_0(tmp_path: Path, codec: str) -> None:
    name, suffix = codec.split()
    late = film(tmp_path / f"late.{suffix}", name, [2000 + 40 * k for k in range(50)])
    rows = as_rows(list(slide(late, PLAIN, window=1, hop=1)), PLAIN)
    assert [row[:3] for row in rows] == [(0, 1_000_000, 25), (1_000_000, 2_000_000, 25)]
    assert rows[0][3] == [[3, 9, 15, 21]]


PEAK = """
import resource, sys
from pathlib import Path
from ssv2rt.video.sliding_window import slide
from ssv2rt.core.recipes import Clip
clip = Clip(frames=8, size=64)
windows = sum(1 for _ in slide(Path(sys.argv[1]), clip, window=4, hop=1))
print(windows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    figures = []
    for frames in (200, 24_000):
        path = film(tmp_path / f"{frames}.mp4", "mpeg4", list(range(frames)), tick=Fraction(1, 12), size=16)
        done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
        figures.append([int(n) for n in done.stdout.split()])
    (few, small), (many, large) = figures
    assert few == 14 and many == 1997
    # KiB. Its windows' clips alone would be 190 MiB, its frames decoded 9 MiB; FFmpeg's index of an MP4 is kept: 1 MiB.
    assert large - small < 16 << 10
