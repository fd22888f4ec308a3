"""From files to clips on a GPU, by NVDEC; and by the same tests on a CPU, where DALI's own decoder stands for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssv2rt.core.recipes import Clip, Data, Synthetic
from ssv2rt.dataset.synthetic import synthesize
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoMeta, probe
from tests.conftest import frame_numbers, numbered_video

CLIP = Clip(frames=6, size=64, center_crop=1.0)
LIMIT = 3.0
"""Mean difference, of 255, that two decoders' interpolation of colors and of pixels explains."""

pytestmark = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def loader(device: str, decoder: str = "", *, batch: int = 8, augment: bool = False, **data: Any) -> ClipLoader:
    decoder = decoder or {"cpu": "dali", "cuda": "nvdec"}[device]
    settings = Data.model_validate({"decoder": decoder, "threads": 2, **data})
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return ClipLoader(clip=CLIP, batch=batch, data=settings, device=where, augment=augment)


def wanted(path: Path) -> ClipRequest:
    return evaluation_request(path.name, path, probe(path), clip=CLIP)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four clips coded as SSv2's are: VP9, 427 wide."""
    folder = tmp_path_factory.mktemp("films")
    synthesize(folder, Synthetic(clips=30, width=427, height=240, frames=(24, 30)), key_frames="first", workers=1)
    return sorted((folder / "videos").iterdir())[:4]


@pytest.mark.parametrize(
    ("codec", "suffix", "width", "height", "frames"),
    [
        ("libvpx-vp9", "webm", 427, 240, 30),
        ("libvpx-vp9", "webm", 320, 240, 3),
        ("libvpx-vp9", "webm", 241, 135, 1),
        ("libx264", "mp4", 428, 240, 30),
    ],
)
def test_frames_are_those_that_were_asked_for(
    device: str, codec: str, suffix: str, width: int, height: int, frames: int, tmp_path: Path
) -> None:
    path = numbered_video(tmp_path / f"v.{suffix}", codec, frames=frames, width=width, height=height)
    request = wanted(path)
    (batch,) = loader(device).batches([[request]])
    assert not batch.bad and batch.clips.device.type == device
    assert frame_numbers(batch.clips[0].cpu().numpy()) == request.frames[0].tolist()


def test_pictures_are_those_that_pyav_makes(device: str, films: list[Path]) -> None:
    requests = [wanted(path) for path in films]
    (batch,) = loader(device).batches([requests])
    for request, made in zip(batch.requests, batch.clips.cpu(), strict=True):
        true = torch.from_numpy(decode_clips(request.path, request, size=CLIP.size)[0])
        assert (made.float() - true.float()).abs().mean() < LIMIT, request.id


def test_codecs_and_sizes_share_a_batch_with_what_is_broken(device: str, films: list[Path], tmp_path: Path) -> None:
    good = [wanted(path) for path in films[:2]]
    good.append(wanted(numbered_video(tmp_path / "h264.mp4", "libx264", frames=20, width=320, height=180)))
    good.append(wanted(numbered_video(tmp_path / "small.webm", "libvpx-vp9", frames=9)))  # too small for NVDEC
    (clean,) = loader(device).batches([good])
    assert not clean.bad
    data = films[0].read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 4 : -200] = bytes(len(data) - 200 - len(data) // 4)
    broken = {
        "flipped.webm": bytes(flipped),
        "half.webm": data[: len(data) // 2],
        "empty.webm": b"",
        "text.mp4": b"hi" * 99,
    }
    bad = []
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        bad.append(evaluation_request(name, tmp_path / name, VideoMeta(12, 427, 240), clip=CLIP))
    mixed = [bad[0], good[0], bad[1], good[1], bad[2], good[2], bad[3], good[3]]
    first, second = loader(device).batches([mixed, good])
    assert torch.equal(second.clips, clean.clips) and [r.id for r in first.requests][-4:] == [r.id for r in good]
    assert torch.equal(first.clips[-4:], clean.clips)
    # NVDEC may show something of a picture whose bytes are wrong; the others no decoder can.
    assert {"half.webm", "empty.webm", "text.mp4"} <= {clip.request.id for clip in first.bad}


class Watched:
    """A DALI pipeline that notes where the batches are that it gives."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.pointers: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def outputs(self, **how: Any) -> Any:
        given = self._pipe.outputs(**how)
        self.pointers.append(int(given[0].as_tensor().data_ptr()))
        return given


def test_what_is_given_is_not_written_over(device: str, films: list[Path]) -> None:
    """DALI uses its memory again once nobody holds it; on a GPU also while torch's stream has not come so far."""
    requests = [wanted(path) for path in films]
    made = loader(device, augment=True)
    expected = [batch.clips.clone() for batch in made.batches([requests[:2], requests[2:]])]
    watched = Watched(made._graph._pipe)  # type: ignore[union-attr]
    made._graph._pipe = watched  # type: ignore[union-attr]
    held, read = [], []
    for batch in made.batches([requests[:2], requests[2:]] * 4):
        if device == "cuda":
            torch.cuda._sleep(200_000_000)  # about 100 ms, on the stream that reads
        read.append(batch.clips.float())  # as a network does, before the next batch is asked for
        held.append(batch.clips)
    if device == "cpu":  # in place
        assert [clips.data_ptr() for clips in held] == watched.pointers and len(set(watched.pointers)) == len(held)
    for number, (clips, floats) in enumerate(zip(held, read, strict=True)):
        assert torch.equal(clips, expected[number % 2]) and torch.equal(floats, expected[number % 2].float())
    view = held[0].permute(0, 4, 1, 2, 3)
    assert view.is_contiguous(memory_format=torch.channels_last_3d) and view.data_ptr() == held[0].data_ptr()


def test_frames_by_pyav_arrive_although_the_gpu_is_late(device: str, tmp_path: Path) -> None:
    """What the GPU has not fetched yet is not written over by the batches that come after it."""
    paths = [numbered_video(tmp_path / f"{n}.webm", "libvpx-vp9", frames=1 + n) for n in range(12)]
    requests = [evaluation_request(p.name, p, probe(p), clip=CLIP) for p in paths]
    expected = [torch.from_numpy(decode_clips(r.path, r, size=CLIP.size)[0]) for r in requests]
    seen = []
    for batch in loader(device, "pyav", batch=1, augment=True).batches([[r] for r in requests * 4]):
        if device == "cuda":
            torch.cuda._sleep(20_000_000)  # about 10 ms, on the stream that the clips are used on
        seen.append(batch.clips.clone())
    for clips, true in zip(seen, expected * 4, strict=True):
        assert torch.equal(clips[0].cpu(), true)


def test_labels_and_clips_come_without_a_wait(device: str, films: list[Path]) -> None:
    requests = [wanted(path) for path in films]
    made = loader(device, "auto")
    assert len(list(made.batches([requests]))) == 1  # whatever is set up once is
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # PyTorch raises where it would wait
    try:
        labels = [batch.labels for batch in made.batches([requests] * 3)]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    for some in labels:
        assert some.device.type == device and some.tolist() == [request.label for request in requests]


def test_a_share_by_pyav_changes_who_decodes_and_nothing_else(device: str, films: list[Path], tmp_path: Path) -> None:
    paths = [Path(shutil.copy(films[n % 4], tmp_path / f"{n}.webm")) for n in range(8)]
    requests = [wanted(path) for path in paths]
    made = loader(device)
    said = made.measure(requests)
    assert "data.cpu_share" in said and 0 <= made.share <= 1
    made.share = 0.5
    (whole,), (half,) = loader(device).batches([requests]), made.batches([requests])
    assert [r.id for r in whole.requests] == [r.id for r in half.requests]
    assert (whole.clips.float() - half.clips.float()).abs().mean() < LIMIT
