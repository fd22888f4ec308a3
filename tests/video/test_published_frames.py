"""The frames and crops of published networks, compared with what their sources compute.

The references below are written from the facts of the sources that `ssv2rt.video.sampling` names.
"""

import shutil
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Clip, Data, Sampling, with_views
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, pick_frames
from ssv2rt.video.crops import uniform_crops
from ssv2rt.video.probe import VideoMeta, probe
from ssv2rt.video.sampling import frame_positions, frames_at_index
from ssv2rt.video.sliding_window import slide
from tests.conftest import frame_numbers, numbered_video

ROOT = Path(__file__).parents[2]
frames = st.integers(1, 3000)
lengths = st.integers(1, 128)
RULES: tuple[Sampling, ...] = ("tsm", "ibm", "pyslowfast")


def of_tsm(n: int, length: int) -> list[list[int]]:
    tick = n / float(length)
    return [[int(tick / 2.0 + tick * x) for x in range(length)], [int(tick * x) for x in range(length)]]


def of_mmaction2(n: int, length: int) -> list[list[int]]:
    """Its recognizers of frames: an offset for each of `num_clips` clips of one frame, and then those without a shift."""
    first = np.arange(length) * (n / float(length))
    offsets = np.concatenate([first + n / float(length) / 2.0, first])
    return (offsets % n).astype(np.int32).reshape(2, length).tolist()


def of_ibm(n: int, length: int, clips: int) -> list[list[int]]:
    """Its uniform sampling with fixed offsets."""
    found = []
    for number, shift in enumerate(range(-clips // 2 + 1, clips // 2 + 1)):
        tick = n / float(length)
        if n > length:
            at: float = shift
            if at >= tick / 2.0:
                at = tick / 2.0 - 1e-4
            elif at < -tick / 2.0:
                at = -tick / 2.0
            found.append([int(tick / 2.0 + at + tick * x) for x in range(length)])
        else:
            np.random.seed(number)
            found.append(sorted(np.random.choice(n, length).tolist()))
    return found


def ends_of_pyslowfast(n: int, length: int) -> list[tuple[int, int]]:
    size = float(n - 1) / length
    return [(int(np.round(size * i)), int(np.round(size * (i + 1)))) for i in range(length)]


def of_pyslowfast(n: int, length: int) -> list[list[int]]:
    return [[(start + end) // 2 for start, end in ends_of_pyslowfast(n, length)]]


def ours(sampling: Sampling, n: int, length: int, views: int, *, meta: VideoMeta | None = None) -> list[list[int]]:
    timing = "time" if meta else "index"
    clip = Clip(frames=length, sampling=sampling, views=(views, 1), timing=timing)  # type: ignore[arg-type]
    return [pick_frames(meta or VideoMeta(n, 64, 48), clip, view=view).tolist() for view in range(views)]


@given(frames, lengths)
def test_tsm_and_mmaction2(n: int, length: int) -> None:
    """For videos of any length: shorter ones repeat frames, as theirs do."""
    assert ours("tsm", n, length, 2) == of_tsm(n, length) == of_mmaction2(n, length)
    assert ours("tsm", n, length, 1) == of_tsm(n, length)[:1]


@given(frames, lengths, st.integers(1, 12))
def test_ibm(n: int, length: int, views: int) -> None:
    """For videos of any length: where there are no more frames than the clip has, its draw is repeated."""
    assert ours("ibm", n, length, views) == of_ibm(n, length, views)


@given(frames, lengths)
def test_pyslowfast(n: int, length: int) -> None:
    assert ours("pyslowfast", n, length, 1) == of_pyslowfast(n, length)


@given(frames, lengths, st.integers(2, 6))
def test_further_views_of_pyslowfast_are_spread_over_its_parts(n: int, length: int, views: int) -> None:
    found = np.array(ours("pyslowfast", n, length, views))
    start, end = np.array(ends_of_pyslowfast(n, length)).T
    assert ((found >= start) & (found <= end)).all() and (np.diff(found, axis=0) >= 0).all()
    assert views % 2 == 0 or found[views // 2].tolist() == of_pyslowfast(n, length)[0]


def test_the_frames_of_the_tables() -> None:
    """Those that the module and docs/preprocessing.md print for n = 50 and T = 8, and the 32 of a median video of SSv2."""
    table: tuple[Sampling, ...] = get_args(Sampling)
    lines = [
        line.split("|")
        for line in (ROOT / "docs" / "preprocessing.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    rows = [cells for cells in lines if any(f"`{name}`" in cells[1] for name in table)]
    for name in table:
        (cells,) = [cells for cells in rows if f"`{name}`" in cells[1]]
        one, two = ("; ".join(" ".join(map(str, row)) for row in ours(name, 50, 8, views)) for views in (1, 2))
        assert (cells[3].strip(), cells[4].strip().replace("the same", one)) == (one, two)
    assert ours("tsm", 50, 8, 2) == [[3, 9, 15, 21, 28, 34, 40, 46], [0, 6, 12, 18, 25, 31, 37, 43]]
    assert ours("ibm", 50, 8, 2) == [[3, 9, 15, 21, 28, 34, 40, 46], [4, 10, 16, 22, 29, 35, 41, 47]]
    assert ours("pyslowfast", 50, 8, 1) == [[3, 9, 15, 21, 27, 34, 40, 46]]
    first, second = ours("ibm", 44, 32, 2)
    assert first[:9] == [0, 2, 3, 4, 6, 7, 8, 10, 11] and second[:9] == [1, 2, 4, 5, 6, 8, 9, 10, 12]


@given(st.sampled_from(RULES), st.integers(1, 400), lengths, st.integers(1, 2))
def test_by_time_a_video_of_that_rate_gives_the_same(rule: Sampling, n: int, length: int, views: int) -> None:
    """At `clip.rate`, 12 frames a second, with times in milliseconds as in a WebM."""
    times = np.round(np.arange(n) / 12, 3).astype(np.float32)
    for meta in (VideoMeta(n, 64, 48, duration=n / 12), VideoMeta(n, 64, 48, duration=n / 12, times=times)):
        assert ours(rule, n, length, views, meta=meta) == ours(rule, n, length, views)


def test_pyslowfast_at_30_frames_a_second_is_what_ffmpeg_extracts(tmp_path: Path) -> None:
    """PySlowFast extracts frames with `-r 30`. Which of two frames stands for a moment midway depends on FFmpeg's version."""
    if not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg")
    path = numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=31)
    extract = ["ffmpeg", "-loglevel", "error", "-i", path, "-r", "30", "-f", "image2pipe", "-c:v", "rawvideo"]
    done = subprocess.run([*extract, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    extracted = frame_numbers(np.frombuffer(done.stdout, np.uint8).reshape(-1, 48, 64, 3))
    clip = Clip(frames=8, sampling="pyslowfast", timing="time", rate=30)
    (theirs,) = of_pyslowfast(len(extracted), 8)
    off = pick_frames(probe(path), clip) - [extracted[index] for index in theirs]
    assert 76 <= len(extracted) <= 79 and np.abs(off).max() <= 1


@pytest.mark.parametrize("rule", RULES)
def test_by_time_another_rate_takes_the_same_moments(rule: Sampling) -> None:
    """A video of 30 frames a second is read as one of 12 frames: each frame shown at the middle of one of those."""
    slow, fast = VideoMeta(48, 64, 48), VideoMeta(120, 64, 48, duration=4.0)
    clip = Clip(frames=8, sampling=rule)
    found = pick_frames(fast, clip.model_copy(update={"timing": "time"}))
    assert found.tolist() == [int((index + 0.5) / 12 * 30) for index in pick_frames(slow, clip)]


def draws(rule: Sampling, n: int, length: int, count: int, jitter: float = 0.0) -> np.ndarray:
    """(count, T) of training"""
    rng = np.random.default_rng(0)
    return np.stack(
        [
            frames_at_index(frame_positions(rule, extent=n, length=length, jitter=jitter, rng=rng), n)
            for _ in range(count)
        ]
    )


@given(st.sampled_from([(50, 8), (7, 16), (1, 4), (120, 32), (9, 8)]))
def test_training_draws_from_pyslowfast_parts(shape: tuple[int, int]) -> None:
    found = draws("pyslowfast", *shape, 400)
    start, end = np.array(ends_of_pyslowfast(*shape)).T
    assert (found.min(0) == start).all() and (found.max(0) == end).all()
    within = draws("pyslowfast", *shape, 400, jitter=0.5)
    assert within.min() == 0 and within.max() == shape[0] - 1 and (np.diff(within) >= 0).all()
    if shape[0] > 20:
        assert np.ptp(within, axis=1).min() < 0.7 * shape[0] < np.ptp(found, axis=1).min()


@pytest.mark.parametrize(("rule", "like"), [("tsm", "segments"), ("ibm", "uniform")])
def test_training_of_the_others_draws_as_ours(rule: Sampling, like: Sampling) -> None:
    assert (draws(rule, 50, 8, 20, jitter=0.2) == draws(like, 50, 8, 20, jitter=0.2)).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ("clip.sampling='tsm'", "clip.views=[3,1]"),
            "clip: views = [3, 1]: sampling = 'tsm' has 1 or 2 temporal clips",
        ),
        (("clip.sampling='slowfast'",), "clip.sampling = 'slowfast': must be 'segments', 'uniform', 'dense', 'tsm',"),
        (("clip.average='softmax'",), "clip.average = 'softmax': must be 'probabilities' or 'logits'"),
    ],
)
def test_wrong_settings_are_one_line(settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_recipe("ssv2-resnet3d18", settings)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_views_that_a_rule_lacks_are_refused() -> None:
    with pytest.raises(UsageError) as raised:
        with_views(Clip(sampling="tsm"), "10x3")
    assert str(raised.value).startswith("--views 10x3: views = [10, 3]: sampling = 'tsm' has 1 or 2 temporal clips")
    with pytest.raises(ValueError, match="view = 2 of 3"):
        frame_positions("tsm", extent=50, length=8, view=2, views=3)


def shown_by_ffmpeg(path: Path, wanted: list[int]) -> np.ndarray:
    """uint8 (T, H, W, 3): the frames that the command picks out of a file, once each."""
    chosen = "+".join(f"eq(n\\,{number})" for number in sorted(set(wanted)))
    command = ["ffmpeg", "-loglevel", "error", "-i", path, "-vf", f"select='{chosen}'", "-vsync", "0"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    once = np.frombuffer(done.stdout, np.uint8).reshape(-1, 48, 64, 3)
    return once[np.searchsorted(sorted(set(wanted)), wanted)]


@pytest.mark.parametrize("count", [31, 6])
@pytest.mark.parametrize(("rule", "views"), [("tsm", 2), ("ibm", 2), ("pyslowfast", 1)])
def test_the_loader_decodes_the_frames_of_each_rule(tmp_path: Path, rule: Sampling, views: int, count: int) -> None:
    """A VP9 file whose frames tell their numbers: as FFmpeg picks them, with both decoders, and in a sliding window."""
    if not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg")
    path = numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=count)
    wanted = {"tsm": of_tsm(count, 8), "ibm": of_ibm(count, 8, 2), "pyslowfast": of_pyslowfast(count, 8)}[rule]
    assert [frame_numbers(shown_by_ffmpeg(path, row)) for row in wanted] == wanted
    clip = Clip(frames=8, size=32, center_crop=1.0, sampling=rule, views=(views, 3))
    for decoder in ("pyav", "dali"):
        data = Data(decoder=decoder, threads=1)  # type: ignore[arg-type]
        loader = ClipLoader(clip=clip, batch=1, data=data, device=torch.device("cpu"))
        (batch,) = loader.batches([[VideoRequest("a", path, clip)]])
        assert [frame_numbers(view) for view in batch.clips.numpy()] == [row for row in wanted for _ in range(3)]
    (window,) = slide(path, clip, window=60, hop=60)
    assert window.clips is not None
    assert [frame_numbers(view) for view in window.clips] == [row for row in wanted for _ in range(3)]


def lefts(width: int, height: int) -> dict[str, list[float]]:
    """Left edges of the published left, center and right crops, in pixels of the frame whose height is 256."""
    room = {"rounded": round(width * 256 / height) - 256, "floored": width * 256 // height - 256}
    quarter, half, floored = room["rounded"] // 4, room["rounded"] // 2, room["floored"]
    return {
        "TSM, IBM": [0, 2 * quarter, 4 * quarter],
        "MMAction2": [0, half, 2 * half],
        "PySlowFast": [0, -(-floored // 2), floored],
    }


@given(st.integers(100, 1080).flatmap(lambda height: st.tuples(st.integers(height, 2 * height), st.just(height))))
def test_crops_are_the_published_ones_but_for_a_few_pixels(size: tuple[int, int]) -> None:
    """Of a frame scaled to 256 high. Ours begin at even pixels of the frame as it is; theirs differ among themselves."""
    width, height = size
    crops = uniform_crops(width=width, height=height, share=1.0, count=3)
    assert {(crop.top, crop.width, crop.height) for crop in crops} == {(0, height, height)}
    for theirs in lefts(width, height).values():
        off = [crop.left * 256 / height - left for crop, left in zip(crops, theirs, strict=True)]
        assert off[0] == 0 and max(map(abs, off)) < 3.5 + 2 * 256 / height


def test_crops_of_an_ssv2_frame() -> None:
    """As `uniform_crops` says."""
    ours = [round(crop.left * 256 / 240, 1) for crop in uniform_crops(width=427, height=240, share=1.0, count=3)]
    assert ours == [0.0, 98.1, 198.4]
    assert lefts(427, 240) == {"TSM, IBM": [0, 98, 196], "MMAction2": [0, 99, 198], "PySlowFast": [0, 100, 199]}
