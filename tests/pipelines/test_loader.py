"""Batches of clips: the decoders agree, bad clips leave their neighbors alone, tensors stay what they are."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.decoder_choice import usual_threads
from ssv2rt.pipelines.decoder_split import balanced_share, is_decoded_by_pyav
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, evaluation_request
from ssv2rt.pipelines.requests import ClipRequest, ColorChange, Patch
from ssv2rt.video.probe import VideoMeta, probe
from tests.conftest import CORNERS, corners, numbered_video

CLIP = Clip(frames=4, size=32, center_crop=1.0)
CPU = torch.device("cpu")


def loader(decoder: str = "auto", *, batch: int = 8, augment: bool = False, **data: object) -> ClipLoader:
    settings = Data.model_validate({"decoder": decoder, "threads": 2, **data})
    return ClipLoader(clip=CLIP, batch=batch, data=settings, device=CPU, augment=augment)


def wanted(path: Path, name: str = "") -> ClipRequest:
    return evaluation_request(name or path.name, path, probe(path), clip=CLIP)


@pytest.fixture
def videos(tmp_path: Path, tiny_set: Path) -> list[Path]:
    """VP9 twice, H.264, MPEG-4."""
    clips = sorted((tiny_set / "videos").iterdir())[:2]
    return [
        clips[0],
        numbered_video(tmp_path / "h264.mp4", "libx264", frames=20),
        clips[1],
        numbered_video(tmp_path / "mpeg4.avi", "mpeg4", frames=20),
    ]


def test_both_decoders_give_the_same_clips(videos: list[Path]) -> None:
    requests = [wanted(path) for path in videos]
    (ours,), (dali,) = (list(loader(name).batches([requests])) for name in ("pyav", "dali"))
    assert ours.clips.shape == dali.clips.shape == (4, 4, 32, 32, 3)
    difference = (ours.clips.float() - dali.clips.float()).abs().mean((1, 2, 3, 4))
    assert difference.max() < 2
    assert difference[1] == difference[3] == 0  # DALI's CPU backend lacks these codecs: PyAV decodes them for it


def test_both_decoders_agree_on_a_real_clip(real_videos: Path) -> None:
    requests = [wanted(real_videos / "ssv2_166766.webm")]
    (ours,), (dali,) = (list(loader(name).batches([requests])) for name in ("pyav", "dali"))
    assert (ours.clips.float() - dali.clips.float()).abs().mean() < 1


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_bad_clips_are_set_apart_and_their_neighbors_unchanged(
    decoder: str, videos: list[Path], tmp_path: Path
) -> None:
    (clean,) = loader(decoder).batches([[wanted(path) for path in videos]])
    data = videos[0].read_bytes()
    # Bytes in the middle of the packets that are decoded: the container is whole, the picture is not.
    broken = bytearray(data)
    broken[len(data) // 4 : -200] = bytes(len(data) - 200 - len(data) // 4)
    cases = {
        "flipped.webm": bytes(broken),
        "empty.webm": b"",
        "short.webm": data[: len(data) // 2],
        "text.webm": b"hi" * 99,
    }
    bad = []
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        bad.append(evaluation_request(name, tmp_path / name, VideoMeta(12, 64, 48), clip=CLIP))
    bad.append(evaluation_request("gone.webm", tmp_path / "gone.webm", VideoMeta(12, 64, 48), clip=CLIP))
    good = [wanted(path) for path in videos]
    mixed = [bad[0], good[0], bad[1], good[1], bad[2], good[2], bad[3], good[3]]
    first, second, third, fourth = loader(decoder).batches([mixed, [bad[4]], good, [bad[0]]])
    assert torch.equal(first.clips, clean.clips)
    assert [r.id for r in first.requests] == [r.id for r in good]
    reasons = {clip.request.id: clip.reason for clip in first.bad}
    assert reasons.keys() == {"flipped.webm", "empty.webm", "short.webm", "text.webm"}
    assert reasons["short.webm"] == "truncated" and reasons["text.webm"] == "unreadable"
    assert reasons["empty.webm"] == "empty file"
    assert (len(second.requests), [c.reason for c in second.bad]) == (0, ["missing"])
    assert torch.equal(third.clips, clean.clips)
    assert len(fourth.requests) == 0 and len(fourth.clips) == 0


def test_a_batch_is_the_same_whatever_surrounds_it(videos: list[Path]) -> None:
    requests = [wanted(path) for path in videos]
    (together,) = loader().batches([requests])
    alone = [batch.clips[0] for batch in loader().batches([[request] for request in requests])]
    assert torch.equal(together.clips, torch.stack(alone))


def test_clips_stay_what_they_are_while_later_ones_are_made(videos: list[Path]) -> None:
    """The tensors are DALI's memory: it must not be used again while we hold them."""
    requests = [wanted(path) for path in videos]
    held: list[ClipBatch] = []
    copies: list[torch.Tensor] = []
    for batch in loader().batches([[requests[n % 4], requests[(n + 1) % 4]] for n in range(40)]):
        held.append(batch)
        copies.append(batch.clips.clone())
    assert all(torch.equal(batch.clips, copy) for batch, copy in zip(held, copies, strict=True))


def test_flip_and_colour_are_done_to_the_clips_that_ask(videos: list[Path]) -> None:

    plain = wanted(videos[0])
    flipped = replace(plain, flip=True)
    dark = replace(plain, color=ColorChange(brightness=0.5))
    gray = replace(plain, color=ColorChange(saturation=0.0))
    (batch,) = loader(augment=True).batches([[plain, flipped, dark, gray]])
    (untouched,) = loader().batches([[plain]])
    a, b, c, d = batch.clips.float()
    assert torch.equal(batch.clips[0], untouched.clips[0])
    assert torch.equal(b, a.flip(2))
    assert (c - a * 0.5).abs().max() <= 1
    assert (d.max(-1).values - d.min(-1).values).max() <= 1  # no color left
    assert (d.mean() - a.mean()).abs() < 10


def test_videos_are_probed_when_they_are_read(videos: list[Path], tmp_path: Path) -> None:
    known = [wanted(path) for path in videos]
    unknown = [VideoRequest(path.name, path, CLIP) for path in videos]
    (a,), (b,) = loader().batches([known]), loader().batches([[*unknown, VideoRequest("no", tmp_path / "no", CLIP)]])
    assert torch.equal(a.clips, b.clips)
    assert [r.video_frames for r in b.requests] == [probe(path).frames for path in videos]
    assert [(c.request.id, c.reason) for c in b.bad] == [("no", "missing")]


def test_a_file_that_shrank_since_it_was_probed_is_truncated(videos: list[Path], tmp_path: Path) -> None:
    for decoder in ("pyav", "dali"):
        path = tmp_path / f"{decoder}.webm"
        shutil.copy(videos[0], path)
        request = wanted(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        (batch,) = loader(decoder).batches([[request]])
        assert [clip.reason for clip in batch.bad] == ["truncated"]


def test_leaving_early_stops_the_work(videos: list[Path]) -> None:
    asked = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            asked.append(1)
            yield [wanted(videos[0])]

    source = loader(prefetch=2, readers=1).batches(endless())
    next(source)
    source.close()
    assert len(asked) <= 6


@pytest.mark.parametrize("augment", [True, False])
def test_who_comes_after_one_who_left_early_gets_his_own(videos: list[Path], augment: bool) -> None:
    requests = [wanted(path) for path in videos]
    shared = loader(augment=augment)
    for number, request in enumerate(requests):
        batch = next(shared.batches([[request], [requests[number - 1]], [requests[number - 2]]]))
        (alone,) = loader().batches([[request]])
        assert torch.equal(batch.clips, alone.clips)


def test_nvdec_without_a_gpu_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        loader("nvdec")


def test_labels_go_with_the_clips(videos: list[Path]) -> None:

    requests = [replace(wanted(path), label=number) for number, path in enumerate(videos)]
    (batch,) = loader().batches([requests])
    assert batch.labels.tolist() == [0, 1, 2, 3]
    assert np.dtype("uint8") == batch.clips.numpy().dtype


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_views_are_what_each_would_be_alone(decoder: str, videos: list[Path]) -> None:
    """Two moments and three squares of VP9, H.264 and MPEG-4 videos in one batch, one of them bad."""
    clip = CLIP.model_copy(update={"views": (2, 3)})
    requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in videos]
    bad = evaluation_request("gone", videos[0].with_name("gone.webm"), probe(videos[0]), clip=clip)
    data = Data.model_validate({"decoder": decoder, "threads": 2})
    (batch,) = ClipLoader(clip=clip, batch=8, data=data, device=CPU).batches([[requests[0], bad, *requests[1:]]])
    assert batch.clips.shape == (24, 4, 32, 32, 3) and [b.reason for b in batch.bad] == ["missing"]
    for number, request in enumerate(requests):
        for moment in range(2):
            for square in range(3):
                one = replace(request, frames=request.frames[moment : moment + 1], crops=(request.crops[square],))
                (alone,) = loader(decoder).batches([[one]])
                view = batch.clips[6 * number + 3 * moment + square]
                # PyAV cuts squares from one scaled picture, to half a pixel, and these are small ones.
                assert (view.float() - alone.clips[0].float()).abs().mean() < (4 if decoder == "pyav" else 1)


def test_a_patch_is_erased(videos: list[Path]) -> None:
    plain = wanted(videos[0])
    erased = replace(plain, erased=Patch(0.25, 0.5, 0.5, 0.25))
    (batch,) = loader(augment=True).batches([[plain, erased]])
    a, b = batch.clips
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:24, 16:24] = True
    assert torch.equal(a[:, ~inside], b[:, ~inside])
    assert (b[:, inside] == torch.tensor([124, 116, 104])).all()


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_turned_videos_come_upright_from_every_decoder(decoder: str, tmp_path: Path) -> None:
    path = corners(tmp_path / "a.mp4", 90)
    (batch,) = loader(decoder).batches([[wanted(path)]])
    seen = batch.clips[0, 0, 6::20, 6::20]
    expected = np.rot90(np.array(list(CORNERS.values())).reshape(2, 2, 3))
    assert np.abs(seen.numpy().astype(int) - expected).max() < 8


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
@pytest.mark.parametrize(("space", "range_"), [(1, 1), (5, 2), (1, 2)])
def test_colours_follow_their_tags_in_every_decoder(decoder: str, space: int, range_: int, tmp_path: Path) -> None:
    path = corners(tmp_path / "a.webm", 0, space, range_, "libvpx-vp9")
    (batch,) = loader(decoder).batches([[wanted(path)]])
    seen = batch.clips[0, 0, 6::20, 6::20].reshape(4, 3)
    assert np.abs(seen.numpy().astype(int) - np.array(list(CORNERS.values()))).max() < 8


def test_a_share_is_decoded_by_pyav_and_by_name(videos: list[Path], tmp_path: Path) -> None:
    """DALI's CPU decoder stands for NVDEC: each clip is what the one or the other makes of it."""
    paths = [Path(shutil.copy(videos[0], tmp_path / f"{number}.webm")) for number in range(12)]
    requests = [wanted(path) for path in paths]
    (ours,), (dali,), (both,), (again,) = (
        list(loader(name, batch=12, cpu_share=share).batches([order]))
        for name, share, order in (
            ("pyav", 0.0, requests),
            ("dali", 0.0, requests),
            ("dali", 0.5, requests),
            ("dali", 0.5, requests[::-1]),
        )
    )
    assert [r.id for r in both.requests] == [path.name for path in paths]
    expected = [(ours if is_decoded_by_pyav(path, 0.5) else dali).clips[n] for n, path in enumerate(paths)]
    assert torch.equal(both.clips, torch.stack(expected)) and torch.equal(again.clips.flip(0), both.clips)
    assert not torch.equal(ours.clips, dali.clips) and 0 < sum(is_decoded_by_pyav(path, 0.5) for path in paths) < 12


def test_names_are_spread_over_a_share() -> None:
    names = [f"{number}.webm" for number in range(2000)]
    assert not any(is_decoded_by_pyav(name, 0.0) for name in names) and all(
        is_decoded_by_pyav(name, 1.0) for name in names
    )
    some = {name for name in names if is_decoded_by_pyav(name, 0.3)}
    assert 500 < len(some) < 700 and some < {name for name in names if is_decoded_by_pyav(name, 0.4)}
    assert is_decoded_by_pyav(Path("/a/b/7.webm"), 0.3) == is_decoded_by_pyav("7.webm", 0.3)


@pytest.mark.parametrize(
    ("graph", "cpu", "share"), [(100, 100, 0.5), (700, 100, 0.125), (1000, 10, 0.0), (10, 1000, 1.0), (0, 0, 0.0)]
)
def test_both_ways_are_done_at_the_same_time(graph: float, cpu: float, share: float) -> None:
    assert balanced_share(graph=graph, cpu=cpu) == share


def test_decoders_are_measured_on_a_batch_that_is_then_made(videos: list[Path]) -> None:
    requests = [wanted(path) for path in videos]
    made = loader("dali")
    assert made.share == 0
    said = made.measure(requests)
    assert f"data.cpu_share = {made.share:g} fixes it" in said and made.share * 8 in range(9)
    (batch,) = made.batches([requests])
    assert [r.id for r in batch.requests] == [r.id for r in requests]


@pytest.mark.parametrize("decoder", ["auto", "dali"])
def test_nothing_is_measured_without_nvdec(decoder: str, videos: list[Path]) -> None:
    told: list[str] = []
    data = Data.model_validate({"decoder": decoder})
    made = ClipLoader(clip=CLIP, batch=4, data=data, device=CPU, measured=told.append)
    assert len(list(made.batches([[wanted(path) for path in videos]]))) == 1
    assert not told and made.share == 0


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = usual_threads()
    assert alone == cores()
    for processes, threads in ((1, alone), (2, max(1, alone // 2)), (64, max(1, alone // 64))):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert usual_threads() == threads
