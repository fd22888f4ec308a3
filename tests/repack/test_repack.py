"""Whole data sets, repacked: every form, interrupted calls, shards, hostile names, full disks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Synthetic
from ssv2rt.dataset.annotations import _is_clip_id
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.manifest import SCHEMA
from ssv2rt.dataset.synthetic import synthesize
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.repack.data_set import LEFT_OUT
from ssv2rt.repack.records import read_records, work_folder
from ssv2rt.repack.run import Repacked, repack
from ssv2rt.repack.settings import Settings, clip_name, settings_for, short_side_for
from ssv2rt.repack.source import open_source, source_name
from ssv2rt.scoring.discover import Shard
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.cli import ssv2rt
from tests.conftest import frame_numbers, numbered_video
from tests.faults import FAULTS

MJPEG = settings_for("mjpeg", short_side=32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 clips in SSv2's layout, of which one is damaged and one is missing."""
    folder = tmp_path_factory.mktemp("small") / "set"
    synthesize(folder, Synthetic(clips=30, width=64, height=48, frames=(6, 9)), workers=1)
    ids = [entry["id"] for entry in json.loads((folder / "train.json").read_text())]
    (folder / f"videos/{ids[0]}.webm").write_bytes(b"no video")
    (folder / f"videos/{ids[1]}.webm").unlink()
    return folder


def call(data: Path, out: Path, settings: Settings = MJPEG, shard: Shard | None = None) -> Repacked:
    return repack(open_source(data, out), source_name(data), out, settings, shard=shard, workers=2)


def content(out: Path) -> dict[str, bytes]:
    """Everything that does not tell when or from where it was made."""
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.suffix not in (".parquet",))
    return {name: (out / name).read_bytes() for name in names if name != "repack.json"}


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small`, repacked."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = call(small, out)
    assert done.clips == 28 and done.missing == 0 and sum(done.left_out.values()) == 2
    return out


def test_a_copy_has_the_same_clips_and_is_not_probed_again(
    small: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = index(small)[0], open_manifest(whole, columns=SCHEMA.names)
    assert after.is_current() and after.all_clips_usable() and after.labels == before.labels
    good = {row["id"]: row for row in before.table.to_pylist() if row["status"] == "ok"}
    rows = {row["id"]: row for row in after.table.to_pylist()}
    assert rows.keys() == good.keys()
    for clip, row in rows.items():
        same = ("split", "label", "frames", "width", "height", "times")
        assert [row[name] for name in same] == [good[clip][name] for name in same]
        assert row["path"] == f"videos/{clip}.mkv" and row["codec"] == "mjpeg"
    fresh = index(whole, out=whole.parent / "fresh.parquet")[0].table.to_pylist()
    but_size = [{k: v for k, v in row.items() if k not in ("width", "height")} for row in fresh]
    assert but_size == [{k: v for k, v in row.items() if k not in ("width", "height")} for row in rows.values()]
    assert {(row["width"], row["height"]) for row in fresh} == {(42, 32)}, "indexing anew finds what the files have"
    table = (whole / LEFT_OUT).read_text()
    assert table.count("unusable") == 2 and "missing" in table and "unreadable" in table
    sources = {r["id"]: r for r in read_records(whole).values() if r["status"] == "ok"}
    assert {c: (r["source_hash"], r["hash"]) for c, r in sources.items()} == {
        c: (good[c]["hash"], rows[c]["hash"]) for c in rows
    }
    copy = whole.parent / "copy"
    shutil.copytree(whole, copy, copy_function=shutil.copyfile)
    copied = open_manifest(copy, columns=SCHEMA.names)
    kept = [name for name in SCHEMA.names if name != "mtime_ns"]
    assert copied.is_current() and copied.table.select(kept) == after.table.select(kept), "newer files are the same"
    (copy / "manifest.parquet").write_bytes(b"damaged")
    shutil.rmtree(copy / "videos")
    shutil.copytree(whole / "videos", copy / "videos")
    open_manifest(copy)
    assert "that `ssv2rt repack` wrote for" in caplog.text and caplog.text.count("the same `ssv2rt repack`") == 2
    entry = json.loads((whole / "train.json").read_text())[0]
    assert entry in json.loads((small / "train.json").read_text()), "annotations keep what they tell beside the class"
    assert not work_folder(whole).exists() and not list(whole.rglob("*.partial")) and not list(whole.rglob(".*.lock"))


def test_commands_take_a_copy_like_the_original(whole: Path, tiny_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = ssv2rt("evaluate", tiny_run.path, "--data", whole, "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["bad"] == 0, done.stderr
    assert ssv2rt("index", whole, cwd=tmp_path).returncode == 0


def test_crops_are_the_same_parts_of_smaller_and_of_stretched_frames(tmp_path: Path) -> None:
    """A request in the source's pixels, as manifests of copies have them, shows the same from copy and source."""
    from tests.conftest import corners

    source = corners(tmp_path / "a.mp4")
    data = tmp_path / "t.csv"
    data.write_text("path,label,split\na.mp4,x,train\na.mp4,x,validation\n".replace("a.mp4,x,v", "b.mp4,x,v"))
    shutil.copyfile(source, tmp_path / "b.mp4")
    for codec in ("mjpeg", "h264"):
        out = tmp_path.with_name(f"{tmp_path.name} {codec}")
        call(data, out, settings_for(codec, short_side=32))
        split = open_manifest(out).split("train")
        assert (split.widths[0], split.heights[0]) == (64, 48)
        request = ClipRequest(
            "a", source, np.array([[0, 2]], np.int32), (CropBox(20, 10, 40, 30),), (64, 48), int(split.frames[0])
        )
        a = decode_clips(source, request, size=32)
        b = decode_clips(split.path(0), request, size=32)
        assert np.abs(a.astype(int) - b).mean() < 16 < np.abs(a.astype(int) - b[:, :, ::-1]).mean()
        info = probe(split.path(0))
        scaled = request.of_size((info.width, info.height))
        assert scaled.frame_size == (info.width, info.height) != request.frame_size
        assert np.array_equal(decode_clips(split.path(0), scaled, size=32), b), "DALI gets the crops so"


def test_folders_and_tables_with_hostile_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    names = [
        "a/1.mp4",
        "a/ü b.mp4",
        "b b/x%2Fy.mp4",
        "b b/sub/.hid.mp4",
        "b b/-1.mp4",
        "a/new\nline.mp4",
        "a/q'\"\\.mp4",
    ]
    for number, name in enumerate(names):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        numbered_video(data / name, "libx264", frames=3 + number)
    (data / os.fsdecode(b"a/\xff.mp4")).write_bytes((data / names[0]).read_bytes())
    link, out = (tmp_path / os.fsdecode(name) for name in (b"d\xff", b"out\xfe"))
    link.symlink_to(data)
    assert call(link, out).left_out == {}
    for name in ("test-answers.csv", "test.json"):
        (out / name).write_text("of a call when there were test clips")
    assert call(link, out).clips == len(names) and not list(out.glob("test*"))
    before, after = index(data)[0], open_manifest(out)
    expected = sorted((clip_name(r["id"]), r["split"], r["label"], r["frames"]) for r in before.table.to_pylist())
    assert expected == sorted((r["id"], r["split"], r["label"], r["frames"]) for r in after.table.to_pylist())
    assert len(expected) == len(names)  # a hidden file is no clip, and one has no UTF-8 name
    table = tmp_path / "t.csv"
    table.write_text(
        f"path,label,split\n{data}/a/1.mp4,left [x],train\ndata/b b/-1.mp4,right,val\n{data}/a/../a/1.mp4,right,test\n"
    )
    assert call(table, tmp_path / "out2").clips == 3
    assert open_manifest(tmp_path / "out2").labels == ("left x", "right"), "SSv2's layout has no square brackets"
    table.write_text("path,label,split\ndata/a/1.mp4,[x],train\ndata/b b/-1.mp4,x,val\n")
    with pytest.raises(UserError, match="the class '.x.' has no name of its own"):
        open_source(table, tmp_path / "out3")
    shutil.copyfile(data / "a/1.mp4", data / "a/2.mp4")
    table.write_text("path,label,split\ndata/a/1.mp4,x,train\ndata/a/2.mp4,x,val\n")
    index(table)
    (data / "a/2.mp4").write_bytes(b"another file")
    for _ in range(2):
        with pytest.raises(UserError, match=f"no validation clip of '.*' could be repacked, see '.*/{LEFT_OUT}'"):
            call(table, tmp_path / "out4")
        assert "1 clips could not be repacked, and their files have changed since they were indexed" in caplog.text
        caplog.clear()
        assert "2.mp4" in (tmp_path / "out4" / LEFT_OUT).read_text() and not list((tmp_path / "out4").glob("train.*"))
    table.write_text("path,label,split\ndata/a/1.mp4,x,train\n")
    with pytest.raises(UserError, match="has no validation clips"):
        open_source(table, tmp_path / "out3")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150), min_size=2, max_size=8
    )
)
def test_names_of_files_are_plain_short_and_unique(ids: list[str]) -> None:
    names = [clip_name(clip) for clip in ids]
    assert len(set(names)) == len(set(ids))
    for clip, name in zip(ids, names, strict=True):
        assert _is_clip_id(name) and not name.startswith(".") and len(name.encode()) <= 200
        assert (
            name == clip
            or not _is_clip_id(clip)
            or set("%\\") & set(clip)
            or clip.startswith(".")
            or len(clip.encode()) > 200
        )


def test_a_killed_call_is_continued(small: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ssv2rt", "repack", str(small), str(out), "--codec", "mjpeg", "--short-side", "32"]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.glob("videos/*.mkv"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in out.glob("videos/*.mkv")}
    assert 4 <= len(done) < 28 and not (out / "train.json").exists()
    (journal,) = work_folder(out).glob("*/journal")
    told = journal.read_text().count("\n") - 2  # without its first line, and the one that is torn, as by a power cut
    journal.write_text(journal.read_text()[:-20])
    assert ssv2rt(*command[3:], cwd=tmp_path).returncode == 3, "two clips of the source are damaged"
    kept = [path for path, changed in done.items() if path.stat().st_mtime_ns == changed]
    assert told >= 1 and len(kept) >= told, "what the journal tells is kept"
    assert content(out) == content(whole) and not work_folder(out).exists()


def test_shards_make_what_one_call_makes(small: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = call(small, out, shard=Shard(1, 2))
    assert first.missing and not (out / "train.json").exists()
    second = call(small, out, shard=Shard(2, 2))
    assert (second.clips, second.missing, sum(second.left_out.values())) == (28, 0, 2)
    assert content(out) == content(whole)
    rows = [open_manifest(folder).table.to_pylist() for folder in (out, whole)]
    assert rows[0] == rows[1]


def test_what_has_changed_is_repacked_again(small: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(small, data)
    call(data, out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    entries = json.loads((data / "train.json").read_text())
    mended, changed, lost = (entries[n]["id"] for n in (0, 2, 3))
    numbered_video(data / f"videos/{mended}.webm", "libvpx-vp9", frames=5)
    numbered_video(data / f"videos/{changed}.webm", "libvpx-vp9", frames=6)
    (out / f"videos/{lost}.mkv").unlink()
    index(data)
    foreign = out / f"videos/{entries[4]['id']}.webm"
    foreign.touch()
    done = call(data, out)
    foreign.unlink()
    assert done.clips == 29 and done.left_out == {"missing": 1}
    again = {path.stem for path in (out / "videos").iterdir() if times.get(path.name) != path.stat().st_mtime_ns}
    assert again == {mended, changed, lost}
    manifest = open_manifest(out)
    frames = dict(zip(manifest.table["id"].to_pylist(), manifest.table["frames"].to_pylist(), strict=True))
    assert (frames[mended], frames[changed]) == (5, 6) and manifest.is_current()
    request = ClipRequest("", out, np.arange(6, dtype=np.int32)[None], (CropBox(0, 0, 64, 48),), (64, 48), 6)
    assert frame_numbers(decode_clips(out / f"videos/{changed}.mkv", request, size=32)[0]) == [0, 1, 2, 3, 4, 5]


def test_every_failure_to_write_is_one_line_and_is_made_good(small: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    source = open_source(small, out)
    for number in range(1, 100):
        try:
            with FAULTS.at(number, tmp_path):
                repack(source, source_name(small), out, MJPEG, workers=1)
            break
        except UserError as error:
            said.append(str(error))
    assert all("No space left on device" in text and "\n" not in text for text in said)
    call(small, out)  # where only cleaning had failed
    assert len(said) > 8 and content(out) == content(whole) and not list(out.rglob("*.partial"))


def test_what_does_not_fit_the_disk_is_refused(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match="need about 10 MB, and 1.0 MB are free in"):
        call(small, tmp_path / "out")


def test_folders_that_hold_something_else_are_left_alone(small: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty, and holds no repacked data set"):
        call(small, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["a.txt"]
    with pytest.raises(UserError, match="was begun with other settings"):
        call(small, whole, settings_for("mjpeg", short_side=40))
    with pytest.raises(UsageError, match="lie in each other"):
        open_source(small, small / "out")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop"):
        call(small, tmp_path / "loop")
    wrong = ssv2rt("repack", small, whole, "--quality", 9, "--codec", "mjpeg", cwd=tmp_path)
    assert wrong.returncode == 1 and "--quality 9" in wrong.stderr and "begun with --quality 4" in wrong.stderr
    for options, says in (
        (("--fps", 5), "begun without --fps"),
        (("--for", "gpu"), "--for gpu: .* was begun with --codec mjpeg"),
        (("--recipe", "ssv2-resnet3d18"), "recipe 'ssv2-resnet3d18' needs --short-side 266, and .* begun with 32"),
    ):
        wrong = ssv2rt("repack", small, whole, *options, cwd=tmp_path)
        assert wrong.returncode == 1 and re.search(says, wrong.stderr), wrong.stderr
    twice = ssv2rt(*f"repack {whole} twice --codec mjpeg --short-side 40".split(), cwd=tmp_path)
    assert twice.returncode == 0 and "its frames are not enlarged" in twice.stderr, twice.stderr
    assert {probe(path).height for path in (tmp_path / "twice/videos").iterdir()} == {32}
    assert set(open_manifest(tmp_path / "twice").table["height"].to_pylist()) == {48}
    again = ssv2rt("repack", small, whole, "--json", cwd=tmp_path)
    assert again.returncode == 3 and json.loads(again.stdout)["short side"] == 32, "settings of the folder are kept"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--codec", "mjpg"], "no codec 'mjpg'; did you mean 'mjpeg'?"),
        (["--codec", "mjpeg", "--for", "gpu"], "takes no mjpeg"),
        (["--codec", "mjpeg", "--quality", "1"], "--quality 1: mjpeg takes 2 (best) to 31"),
        (["--quality", "5"], "give --codec, too"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--fps", "nan"], "nan is not a number"),
    ],
)
def test_wrong_options_are_one_line(small: Path, tmp_path: Path, options: list[str], says: str) -> None:
    done = ssv2rt("repack", small, "out", "--for", "cpu", *options, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and not (tmp_path / "out").exists()


def test_what_is_kept_of_frames_and_for_which_recipe_is_said(small: Path, tmp_path: Path) -> None:
    """Sizes and times are in units that fit."""
    done = ssv2rt("repack", small, "out", "--for", "cpu", "--codec", "mjpeg", cwd=tmp_path)
    kept = "kept in their size, as no clip is larger than 48 pixels on its shorter side"
    assert done.returncode == 3 and f"frames are for recipe 'small', whose clips have 80 pixels: {kept}" in done.stderr
    assert re.search(rf"frames +{kept}\n", done.stdout) and "short side" not in done.stdout
    assert re.search(r"size +\d+ kB\n", done.stdout)
    done = ssv2rt("repack", small, "gpu", "--for", "gpu", "--codec", "h264", "--shard", "1/30", cwd=tmp_path)
    assert "frames are for recipe 'ssv2-resnet3d18', whose clips have 224 pixels" in done.stderr
    done = ssv2rt("repack", small, "less", "--codec", "mjpeg", "--short-side", 32, "--shard", "1/30", cwd=tmp_path)
    assert "scaled to 32 pixels on their shorter side" in done.stdout


def test_codecs_are_measured(small: Path, tiny_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = ("--for", "cpu", "--dry-run", "--clips", 4, "--set", "clip.size=32", "--set", "clip.frames=4")
    done = ssv2rt("repack", small, "out", *options, "--json", "--run", tiny_run.path, cwd=tmp_path)
    assert done.returncode == 0 and not (tmp_path / "out").exists(), done.stderr
    figures = json.loads(done.stdout)
    codecs = figures["codecs"]
    assert codecs.keys() == {"original", "mjpeg", "h264-intra", "h264"} and figures["chosen"] in codecs
    assert codecs["original"]["difference"] == 0 and all(f["top1"] is not None for f in codecs.values())
    assert all(
        0 < codecs[name]["difference"] < 12 and codecs[name]["seconds"] > 0 for name in codecs if name != "original"
    )


def test_repacked_clips_are_measured_beside_the_originals(whole: Path, tmp_path: Path) -> None:
    options = ("--repacked", whole, "--clips", 8, "--rounds", 2, "--threads", 1, "--json", "f.json")
    done = ssv2rt("benchmark", "decode", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["files"].keys() == {"original", "out"} and len(figures["sizes"]) == 2
    for measured in figures["sizes"].values():
        assert {"ssv2rt, original", "ssv2rt, out", "PyAV + torch, out"} <= measured["clips_per_second"].keys()
        assert all(value > 0 for value in measured["times_by_cpu"]["out"].values())
    assert "times the best peer on the same files" in " ".join(done.stdout.split())
    assert ssv2rt("benchmark", "decode", "--repacked", tmp_path, cwd=tmp_path).returncode == 1


def test_the_default_size_is_what_the_crops_of_a_recipe_need() -> None:
    recipe = load_recipe("ssv2-resnet3d18", ("clip.size=112",))
    side = short_side_for(recipe)
    smallest = (recipe.augment.crop_scale[0] * side * side * 16 / 9) ** 0.5
    assert smallest >= 112 and side * recipe.clip.center_crop >= 112 and side % 2 == 0
    assert Settings("mjpeg", side, 4).frame_size(100, 80) == (100, 80), "small clips keep their size"
    assert Settings("h264", 128, 20).frame_size(427, 240) == (224, 128)
