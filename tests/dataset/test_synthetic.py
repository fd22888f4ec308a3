"""The synthetic set: real VP9 in SSv2's layout, made of exact twins."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Synthetic
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.listing import SPLITS
from ssv2rt.dataset.synthetic import LABELS, encode_vp9, mux_webm, plan, synthesize
from ssv2rt.video.probe import probe
from tests.conftest import TINY


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_twins_are_bit_exact_reversals(tiny_set: Path) -> None:
    twins = json.loads((tiny_set / "twins.json").read_text())
    videos = tiny_set / "videos"
    for first, second in list(twins.items())[:10]:
        assert (decode(videos / f"{first}.webm") == decode(videos / f"{second}.webm")[::-1]).all()


def test_twins_have_opposite_labels_in_the_same_split(tiny_set: Path) -> None:
    twins = json.loads((tiny_set / "twins.json").read_text())
    annotations = list_clips(tiny_set)
    where = {clip.id: (clip.split, clip.label) for clip in annotations.clips}
    assert len(where) == TINY.clips == len(twins)
    for first, second in twins.items():
        assert where[first][0] == where[second][0]
        assert where[first][1] ^ 1 == where[second][1]  # classes 2k and 2k+1 are a pair


def test_every_class_is_as_frequent_in_every_split(tiny_set: Path) -> None:
    clips = list_clips(tiny_set).clips
    for split in SPLITS:
        counts = np.bincount([clip.label for clip in clips if clip.split == split], minlength=len(LABELS))
        assert counts.max() - counts.min() <= 1


def test_clips_match_the_spec(tiny_set: Path) -> None:
    files = sorted((tiny_set / "videos").glob("*.webm"))
    assert len(files) == TINY.clips
    for file in files[:10]:
        info = probe(file)
        assert (info.codec, info.width, info.height, info.rate) == ("vp9", TINY.width, TINY.height, 12)
        assert TINY.frames[0] <= info.frames <= TINY.frames[1]


def test_files_depend_only_on_the_seed(tmp_path: Path) -> None:
    spec = Synthetic(clips=30, width=48, height=32, frames=(4, 6), seed=3)
    for name, workers in (("a", 1), ("b", 2)):
        synthesize(tmp_path / name, spec, workers=workers)
    synthesize(tmp_path / "other", spec.model_copy(update={"seed": 4}), workers=1)
    content = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b", "other")
    }
    assert content["a"] == content["b"]
    assert content["a"].keys() == content["other"].keys() and content["a"] != content["other"]


def test_interrupted_call_is_resumed(tmp_path: Path) -> None:
    spec = Synthetic(clips=30, width=48, height=32, frames=(4, 6))

    def stop(clips: int) -> None:
        if any((tmp_path / "a" / "videos").iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "a", spec, workers=1, progress=stop)
    assert not (tmp_path / "a" / "train.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "videos").iterdir()}
    assert 0 < len(before) < 30
    synthesize(tmp_path / "a", spec, workers=1)
    assert len(list((tmp_path / "a" / "videos").iterdir())) == 30
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        synthesize(tmp_path, TINY)
    synthesize(tmp_path / "a", Synthetic(clips=30, width=48, height=32, frames=(4, 4)), workers=1)
    with pytest.raises(UserError, match="other settings"):
        synthesize(tmp_path / "a", TINY)


def test_ssv2_like_coding_has_one_key_frame(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (6, 48, 65, 3), np.uint8)
    (tmp_path / "a.webm").write_bytes(mux_webm(encode_vp9(clip, "first"), 65, 48, "first"))
    with av.open(str(tmp_path / "a.webm")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [True] + [False] * 5


def test_no_pair_spans_two_splits_and_every_split_is_there() -> None:
    for clips in (30, 32, 1000):
        pairs = plan(Synthetic(clips=clips))
        assert len({clip for pair in pairs for clip in pair.ids}) == clips
        assert {pair.split for pair in pairs} == {"train", "validation", "test"}
