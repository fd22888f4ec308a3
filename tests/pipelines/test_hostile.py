"""Broken clips by the hundred: each costs itself only, and none is turned into pictures that are not there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.dataset.index import open_manifest
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.probe import VideoMeta, probe
from tests.conftest import TINY_SETTINGS, numbered_video

CLIP = Clip(frames=4, size=32, center_crop=1.0)
VARIANTS = 260


def loader(decoder: str) -> ClipLoader:
    data = Data.model_validate({"decoder": decoder, "threads": 2})
    return ClipLoader(clip=CLIP, batch=8, data=data, device=torch.device("cpu"))


def broken(whole: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Variants of a file by name: cut off, bytes flipped, runs of zeros, pieces swapped, doubled and taken out."""
    rng = np.random.default_rng(0)
    size = len(whole)
    for number in range(count):
        data, kind = bytearray(whole), number % 6
        a, b = sorted(int(x) for x in rng.integers(0, size, 2))
        if kind == 0:
            yield f"cut {number}", whole[: a + 1]
            continue
        if kind == 1:
            for at in rng.integers(0, size, 1 + number % 8):
                data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[a : a + 64] = bytes(min(64, size - a))
        elif kind == 3:
            data = bytearray(whole[b:] + whole[a:b] + whole[:a])
        elif kind == 4:
            data = bytearray(whole[:b] + whole[a:])
        else:
            data = bytearray(whole[:a] + whole[b:])
        yield f"{['', 'flip', 'zero', 'swap', 'double', 'gap'][kind]} {number}", bytes(data)


@pytest.fixture(scope="module", params=["libvpx-vp9 webm", "libx264 mp4", "mpeg4 avi"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A good clip, and broken variants of it."""
    codec, suffix = request.param.split()
    folder = tmp_path_factory.mktemp("zoo")
    good = numbered_video(folder / f"good.{suffix}", codec, frames=30, gop=10)
    paths = []
    for name, data in broken(good.read_bytes(), VARIANTS):
        paths.append(folder / f"{name}.{suffix}")
        paths[-1].write_bytes(data)
    return good, paths


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_neighbors_are_exactly_what_they_are_without_the_broken(zoo: tuple[Path, list[Path]], decoder: str) -> None:
    good, paths = zoo
    info = probe(good)
    fine = evaluation_request("good", good, info, clip=CLIP)
    (clean,) = loader(decoder).batches([[fine]])
    batches: list[list[ClipRequest | VideoRequest]] = []
    for start in range(0, VARIANTS, 3):
        some = paths[start : start + 3]
        # As training knows a clip that was whole when it was probed; as scoring meets one it knows nothing of.
        known = [evaluation_request(path.name, path, info, clip=CLIP) for path in some]
        unknown = [VideoRequest(f"? {path.name}", path, CLIP) for path in some]
        batches.append([fine, *known, *unknown, fine])
    bad: dict[str, str] = {}
    for batch in loader(decoder).batches(batches):
        ids = [request.id for request in batch.requests]
        assert ids[0] == ids[-1] == "good"
        assert torch.equal(batch.clips[0], clean.clips[0]) and torch.equal(batch.clips[-1], clean.clips[0])
        bad |= {clip.request.id: clip.reason for clip in batch.bad}
        for name, clip in zip(ids[1:-1], batch.clips[1:-1], strict=True):
            if name.startswith("cut"):  # only what lies after the last frame may be missing unnoticed
                assert torch.equal(clip, clean.clips[0]), name
    assert set(bad.values()) <= {"unreadable", "truncated", "corrupt", "no video stream", "unsupported codec"}
    assert len([name for name in bad if name.startswith("cut")]) >= VARIANTS // 6 * 0.8
    assert len(bad) >= VARIANTS / 2


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_what_is_no_file_or_no_video(tmp_path: Path, decoder: str) -> None:
    good = numbered_video(tmp_path / "good.webm", "libvpx-vp9", frames=12)
    (tmp_path / "empty.webm").touch()
    (tmp_path / "text.webm").write_text("hello")
    (tmp_path / "header.webm").write_bytes(good.read_bytes()[:200])
    (tmp_path / "folder.webm").mkdir()
    os.mkfifo(tmp_path / "pipe.webm")
    (tmp_path / "loop.webm").symlink_to("loop.webm")
    names = ["empty", "text", "header", "folder", "pipe", "loop", "gone"]
    bad = [evaluation_request(name, tmp_path / f"{name}.webm", VideoMeta(12, 64, 48), clip=CLIP) for name in names]
    fine = evaluation_request("good", good, probe(good), clip=CLIP)
    (clean,) = loader(decoder).batches([[fine]])
    (batch,) = loader(decoder).batches([[*bad[:4], fine, *bad[4:]]])
    assert torch.equal(batch.clips, clean.clips)
    reasons = {clip.request.id: clip.reason for clip in batch.bad}
    assert reasons.pop("header") in ("unreadable", "truncated")
    words = {"gone": "missing", "empty": "empty file"}
    assert reasons == {name: words.get(name, "unreadable") for name in names if name != "header"}


def test_training_skips_what_breaks_after_it_was_indexed(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file disappears, one is cut short, one is overwritten: counted, named, and too many of them stop the run."""
    from ssv2rt.core.run_folders import create_run
    from ssv2rt.training.trainer import Trainer

    data = tmp_path / "data"
    shutil.copytree(tiny_set, data)
    manifest = open_manifest(data)
    split = manifest.split("train")
    split.path(1).unlink()
    whole = split.path(2).read_bytes()
    split.path(2).write_bytes(whole[: len(whole) // 3])
    split.path(3).write_text("overwritten")
    settings = (f"data.root='{data}'", *TINY_SETTINGS)
    recipe = load_recipe("ssv2-resnet3d18", (*settings, "data.max_bad=0.1"))
    Trainer(recipe, manifest).fit(create_run("t", root=tmp_path))
    said = capsys.readouterr().err
    for row, reason in ((1, "missing"), (2, "truncated"), (3, "unreadable")):
        assert f"skipped {split.path(row)}: {reason}" in said
    with pytest.raises(UserError, match=r"clips could not be decoded .* more than data.max_bad = 0.01"):
        Trainer(load_recipe("ssv2-resnet3d18", (*settings, "data.max_bad=0.01")), manifest).fit(
            create_run("t", root=tmp_path)
        )
