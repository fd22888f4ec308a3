"""What the DALI graph makes of clips on a GPU: colors, mirrored and erased pictures. By the same tests on a CPU."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.scenes import draw_clip
from ssv2rt.dataset.synthetic import encode_vp9, mux_webm
from ssv2rt.pipelines.dali_graph import ClipGraph
from ssv2rt.pipelines.decoder_trust import LIMIT
from ssv2rt.pipelines.hand_over import hand_over, read_coded
from ssv2rt.pipelines.loaded_clip import LoadedClip
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest, ColorChange, Patch
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.conftest import corners

pytestmark = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

CLIP = Clip(frames=4, size=64, center_crop=1.0)
PATCH = Patch(0.25, 0.5, 0.5, 0.25)
GREY = (124, 116, 104)


@pytest.fixture
def request_of_corners(tmp_path: Path) -> ClipRequest:
    """A clip with a color in each corner."""
    path = corners(tmp_path / "corners.webm", codec="libvpx-vp9")
    return evaluation_request("corners", path, probe(path), clip=CLIP)


def through(device: str, fetched: list[LoadedClip], *, decodes: bool = False) -> torch.Tensor:
    """uint8 (N, T, size, size, 3), on the CPU."""
    decoder = "none" if not decodes else "mixed" if device == "cuda" else "cpu"
    gpu = 0 if device == "cuda" else None
    graph = ClipGraph(size=CLIP.size, batch=len(fetched), decoder=decoder, augment=True, threads=1, gpu=gpu)  # type: ignore[arg-type]
    graph.feed(fetched)
    made = graph.take()
    assert made is not None and made.device.type == device
    return made.cpu()


def test_colours_and_erased_patches(device: str, request_of_corners: ClipRequest) -> None:
    plain = request_of_corners
    changes = [
        plain,
        replace(plain, color=ColorChange(brightness=1.4)),
        replace(plain, color=ColorChange(contrast=0.6)),
        replace(plain, color=ColorChange(saturation=0.0)),
        replace(plain, color=ColorChange(hue=18.0)),
        replace(plain, color=ColorChange(1.2, 0.8, 1.3, -12.0), erased=Patch(0.2, 0.3, 0.4, 0.3)),
        replace(plain, erased=PATCH),
    ]
    fetched = [LoadedClip(r, frames=decode_clips(r.path, r, size=CLIP.size)) for r in changes]
    made, on_cpu = through(device, fetched).float(), through("cpu", fetched).float()
    assert torch.equal(made[0], torch.from_numpy(fetched[0].frames[0]).float())  # type: ignore[index]
    assert (made - on_cpu).abs().mean(dim=(1, 2, 3, 4)).max() < 1.0
    for changed in made[1:]:
        assert (changed - made[0]).abs().mean() > 1.0
    inside = made[6][:, 17:47, 33:47]
    assert (inside - torch.tensor(GREY)).abs().max() <= 1


def test_mirrored_by_the_graph_is_mirrored(device: str, tmp_path: Path) -> None:
    path, scene = tmp_path / "v.webm", draw_clip(np.random.default_rng(0), 0, 6, 320, 240)
    path.write_bytes(mux_webm(encode_vp9(scene, "all"), 320, 240, "all"))
    plain = evaluation_request("v", path, probe(path), clip=CLIP)
    handed = hand_over(read_coded(path, codec="vp9"), plain.frames)
    fetched = [LoadedClip(request, handed) for request in (plain, replace(plain, flip=True))]
    there, mirrored = through(device, fetched, decodes=True)
    assert torch.equal(mirrored, there.flip(2)) and not torch.equal(mirrored, there)


def waves(path: Path, first: int, range_: int) -> Path:
    """24 frames of VP9, of which no two are alike; black is 16 where `range_` is 1, and 0 where it is 2."""
    y, x = np.mgrid[0:240, 0:320].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options={"deadline": "realtime", "lag-in-frames": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", 800_000
        stream.codec_context.colorspace, stream.codec_context.color_range = 5, range_
        for at in range(first, first + 24):
            colors = [np.sin((x + (3 + k) * at) / 23 + k) + np.cos((y - 5 * at) / 19 + 2 * k) for k in range(3)]
            frame = av.VideoFrame.from_ndarray((127 + 60 * np.stack(colors, axis=-1)).astype(np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=5, dst_color_range=range_)
            frame.colorspace, frame.color_range = 5, range_
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_full_range_is_seen_among_videos_that_have_it_not(device: str, tmp_path: Path) -> None:
    """The first videos decide that DALI is trusted with all of their kind."""
    paths = [waves(tmp_path / f"{n}.webm", 50 * n, 1 if n < 4 else 2) for n in range(6)]
    requests = [evaluation_request(path.name, path, probe(path), clip=CLIP) for path in paths]
    where = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    data = Data.model_validate({"decoder": {"cpu": "dali", "cuda": "nvdec"}[device], "threads": 2})
    loader = ClipLoader(clip=CLIP, batch=3, data=data, device=where)
    for batch in loader.batches([requests[:3], requests[3:]]):
        for request, made in zip(batch.requests, batch.clips.cpu().float(), strict=True):
            true = torch.from_numpy(decode_clips(request.path, request, size=CLIP.size)[0]).float()
            assert (made - true).abs().mean() < LIMIT, request.id
