"""`ssv2rt index` reports problems with clips, and reuses earlier results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset import index as index_module
from ssv2rt.dataset.file_facts import content_hash, file_facts
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.listing import is_video
from ssv2rt.dataset.manifest import SCHEMA, TRAINING_COLUMNS, Manifest, read_manifest, write_manifest
from ssv2rt.dataset.synthetic import mux_webm
from tests.cli import ssv2rt
from tests.conftest import numbered_video


def row(manifest: Manifest, name: str) -> dict[str, object]:
    return next(r for r in manifest.table.to_pylist() if Path(r["path"]).name == name)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    from ssv2rt.dataset import file_facts as look

    calls: list[object] = []
    probe = look.probe
    monkeypatch.setattr(look, "probe", lambda source: calls.append(source) or probe(source))
    return calls


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Class folders with clips that have all kinds of problems."""
    root = tmp_path / "zoo"
    good = root / "train" / "good"
    good.mkdir(parents=True)
    for number in range(4):
        numbered_video(good / f"{number}.mp4", "libx264", frames=30 + number, gop=10)
    bad = root / "train" / "bad"
    bad.mkdir()
    whole = numbered_video(bad / "fine.webm", "libvpx-vp9", frames=40, gop=5).read_bytes()
    (bad / "empty.webm").touch()
    (bad / "text.webm").write_text("not a video")
    (bad / "header.webm").write_bytes(whole[:300])
    (bad / "short.webm").write_bytes(whole[: len(whole) // 2])
    with av.open(str(bad / "fine.webm")) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    packets[7] = bytes(len(packets[7]))  # the container stays intact
    (bad / "damaged.webm").write_bytes(mux_webm(packets, 64, 48, "first"))
    (bad / "folder.webm").mkdir()
    (bad / "gone.webm").symlink_to("nowhere")
    numbered_video(bad / "single.mp4", "libx264", frames=1)
    (root / "val" / "good").mkdir(parents=True)
    shutil.copy(good / "1.mp4", root / "val" / "good" / "copy.mp4")
    return root


def test_all_problems_are_reported(zoo: Path) -> None:
    done = ssv2rt("index", "zoo", cwd=zoo.parent)
    assert done.returncode == 0, done.stderr
    assert "what is wrong" in done.stdout and "zoo/quarantine.csv" in done.stdout
    table = pyarrow.csv.read_csv(zoo / "quarantine.csv").to_pylist()
    reasons = {Path(r["path"]).name: (r["status"], r["reason"]) for r in table}
    assert reasons.pop("copy.mp4") == ("suspicious", "same content as train/good/1.mp4 (train)")
    assert reasons.pop("1.mp4") == ("suspicious", "same content as val/good/copy.mp4 (validation)")
    assert reasons.pop("single.mp4") == ("suspicious", "a single frame")
    assert reasons.pop("short.webm") == ("unusable", "truncated")
    assert reasons.pop("header.webm")[0] == "unusable"
    assert reasons.pop("gone.webm") == ("unusable", "missing")
    assert {name: reason for name, (_, reason) in reasons.items()} == {
        "empty.webm": "empty file",
        "text.webm": "unreadable",
    }  # headers do not show the damage, and a folder is not a clip
    summary = json.loads(ssv2rt("index", "zoo", "--json", cwd=zoo.parent).stdout)
    assert summary["splits"]["train"] == {"clips": 12, "usable": 7, "classes": 2}
    assert summary["unusable"] == {"unreadable": 1, "empty file": 1, "truncated": 1, "missing": 1} | summary["unusable"]


def test_decoding_finds_damage_that_headers_do_not_show(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = index(zoo)
    assert row(before, "damaged.webm")["status"] == "ok" and not row(before, "fine.webm")["decoded"]
    after, _ = index(zoo, decode=True)
    assert row(after, "damaged.webm")["status"] in ("unreadable", "corrupt", "truncated")
    assert row(after, "fine.webm")["status"] == "ok" and row(after, "fine.webm")["decoded"]
    calls = looked_at(monkeypatch)
    index(zoo, decode=True)
    assert len(calls) <= 6  # only the unusable clips


def test_manifest_row_of_a_clip(zoo: Path) -> None:
    manifest, where = index(zoo)
    assert where == zoo / "manifest.parquet" and pq.read_schema(where).names == SCHEMA.names
    facts = row(manifest, "2.mp4")
    assert facts["codec"] == "h264" and facts["container"] == "mov" and facts["pixels"] == "yuv420p"
    assert (facts["width"], facts["height"], facts["frames"], facts["rate"]) == (64, 48, 32, 12)
    assert facts["key_frames"] == 4 and facts["times"] is None and facts["rotation"] == 0
    assert facts["duration"] == pytest.approx(32 / 12, rel=0.01)
    path = zoo / "train" / "good" / "2.mp4"
    assert facts["bytes"] == path.stat().st_size and facts["hash"] == content_hash(path)


def test_only_changed_files_are_probed_again(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(zoo)
    bad = 4
    calls = looked_at(monkeypatch)
    index(zoo)
    assert len(calls) <= bad
    calls.clear()
    numbered_video(zoo / "train" / "good" / "0.mp4", "libx264", frames=17)
    numbered_video(zoo / "train" / "good" / "new.mp4", "libx264", frames=18)
    (zoo / "train" / "good" / "3.mp4").unlink()
    manifest, _ = index(zoo)
    assert len(calls) <= bad + 2
    assert row(manifest, "0.mp4")["frames"] == 17 and row(manifest, "new.mp4")["frames"] == 18
    assert not any(path.endswith("3.mp4") for path in manifest.table["path"].to_pylist())


def test_added_and_removed_clips_are_noticed(zoo: Path) -> None:
    assert len(open_manifest(zoo).split("train")) == 7
    numbered_video(zoo / "train" / "good" / "new.mp4", "libx264", frames=18)
    assert len(open_manifest(zoo).split("train")) == 8


def test_manifest_in_another_folder_is_accepted_as_data(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "else" / "m.parquet"
    out.parent.mkdir()
    manifest, where = index(zoo, out=out)
    assert where == out and (out.parent / "m.quarantine.csv").is_file() and not (zoo / "manifest.parquet").exists()
    again = open_manifest(out)
    assert again.table.equals(manifest.table.select(TRAINING_COLUMNS)) and again.labels == manifest.labels
    split = again.split("train")
    assert all(split.path(number).is_file() for number in range(len(split)))
    with pytest.raises(UserError, match="cannot write '.*'; choose another --out|cannot write"):
        index(zoo, out=tmp_path / "no" / "m.parquet")


def test_the_data_can_be_moved_with_its_manifest(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(zoo)
    moved = zoo.rename(zoo.with_name("moved"))
    calls = looked_at(monkeypatch)
    split = open_manifest(moved).split("train")
    assert len(calls) <= 4 and split.path(0).is_file()


def test_killed_index_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL, after results were saved once."""
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    clip = numbered_video(tmp_path / "x.webm", "libvpx-vp9", frames=5).read_bytes()
    for number in range(3000):
        (root / "a" / f"{number}.webm").write_bytes(clip)
    code = (
        "from pathlib import Path; import ssv2rt.dataset.index as module; module._SAVE_EVERY = 0.2\n"
        "module.index(Path('data'), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    until = time.monotonic() + 60
    while not (root / "manifest.parquet").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = read_manifest(root / "manifest.parquet")
    assert saved is not None and 0 < len(saved.table) < 3000 and not saved.is_current()
    calls = looked_at(monkeypatch)
    manifest, _ = index(root, workers=1)
    assert len(manifest.table) == 3000 and len(calls) == 3000 - len(saved.table)


def test_many_clips_are_probed_in_parallel(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    clip = numbered_video(tmp_path / "x.webm", "libvpx-vp9", frames=5).read_bytes()
    for number in range(1100):
        (root / "a" / f"{number}.webm").write_bytes(clip + bytes(number % 7))
    alone, _ = index(root, out=tmp_path / "1.parquet", workers=1)
    together, _ = index(root, out=tmp_path / "2.parquet", workers=2)
    assert alone.table.equals(together.table)


@pytest.mark.parametrize("suffix", [".mp4", ".csv"])
def test_a_name_that_is_not_utf8_leads_back_to_its_clip(zoo: Path, suffix: str) -> None:
    """Beside a name that looks like its escaped form."""
    names = [b"\xff.mp4", b"\\xff.mp4"]
    for number, name in enumerate(names):
        shutil.copy(zoo / "train" / "good" / f"{number}.mp4", os.fsencode(zoo / "train" / "good") + b"/" + name)
    root = zoo
    if suffix == ".csv":
        root = zoo.parent / "t.csv"
        lines = [b"zoo/train/good/%s,caf\xe9 %d\n" % (name, number) for number, name in enumerate(names)]
        root.write_bytes(b"path,label\n" + b"".join(lines))
    manifest, _ = index(root)
    assert row(manifest, "\\xff.mp4")["frames"] == 30 and row(manifest, "\\x5cxff.mp4")["frames"] == 31
    split = open_manifest(root).split("train")
    assert {os.fsencode(split.path(number).name) for number in range(len(split))} >= {*names}
    if suffix == ".csv":
        assert split.labels == ("caf\\xe9 0", "caf\\xe9 1")


def test_decoding_errors_are_kept_until_the_file_changes(zoo: Path) -> None:
    index(zoo, decode=True)
    for manifest in (index(zoo)[0], open_manifest(zoo)):
        assert row(manifest, "damaged.webm")["status"] != "ok"
    shutil.copy(zoo / "train" / "bad" / "fine.webm", zoo / "train" / "bad" / "damaged.webm")
    assert row(index(zoo)[0], "damaged.webm")["status"] == "ok"


def test_files_of_the_user_are_not_overwritten(zoo: Path) -> None:
    mine = zoo / "clips.csv"
    mine.write_text("path,label\ntrain/good/0.mp4,up\ntrain/good/1.mp4,down\n")
    with pytest.raises(UserError, match="`ssv2rt index` has not written it"):
        index(mine, out=mine)
    assert mine.read_text().startswith("path,label")
    shutil.move(mine, zoo.parent / "clips.csv")
    (zoo / "quarantine.csv").write_text("my,own\n1,2\n")
    with pytest.raises(UserError, match="quarantine.csv' exists"):
        index(zoo)


@pytest.mark.parametrize("name", ["manifest.parquet", "clips.csv.manifest.parquet"])
def test_damaged_manifest_is_rebuilt(zoo: Path, name: str) -> None:
    mine = zoo / "clips.csv"
    mine.write_text("path,label,split\ntrain/good/0.mp4,up,train\ntrain/good/1.mp4,down,validation\n")
    root = mine if name.startswith("clips") else zoo
    (zoo / name).write_bytes(b"PAR1 torn")
    assert len(index(root)[0].table) == len(open_manifest(root).table) > 1


def test_index_refuses_a_manifest(zoo: Path) -> None:
    manifest, _ = index(zoo, out=zoo / "other.parquet")
    assert index(zoo)[0].labels == manifest.labels == ("bad", "good")
    with pytest.raises(UserError, match="is a manifest; give the data set"):
        index(zoo / "other.parquet")


def test_tables_of_one_name_do_not_share_a_manifest(zoo: Path) -> None:
    for suffix, names in (("csv", "01"), ("parquet", "23")):
        paths = [f"train/good/{n}.mp4" for n in names]
        table = pa.table({"path": paths, "label": [f"{suffix} {n}" for n in names]})
        target = zoo / f"d.{suffix}"
        pa.csv.write_csv(table, target) if suffix == "csv" else pq.write_table(table, target)
    assert open_manifest(zoo / "d.csv").labels == ("csv 0", "csv 1")
    assert open_manifest(zoo / "d.parquet").labels == ("parquet 2", "parquet 3")


def test_an_interrupted_manifest_is_not_trained_on(zoo: Path) -> None:
    out = zoo.parent / "m.parquet"
    index(zoo, out=out)
    manifest = read_manifest(out)
    assert manifest is not None
    write_manifest(out, replace(manifest, table=manifest.table.slice(0, 3), fingerprint=""))
    with pytest.raises(UserError, match="is incomplete"):
        open_manifest(out)


def test_files_that_crash_or_hang_their_process_are_isolated(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MOST_IN_PROCESS", 0)
    monkeypatch.setattr(index_module, "_FILES_PER_BATCH", 4)
    monkeypatch.setattr(index_module, "_TIMEOUT", 3.0)
    monkeypatch.setattr(index_module, "_PROBER", "tests.dataset.doubles:deadly_prober")
    manifest, _ = index(zoo, workers=2)
    statuses = {Path(r["path"]).name: r["status"] for r in manifest.table.to_pylist()}
    assert statuses.pop("2.mp4") == "decoder crashed" and statuses.pop("3.mp4") == "timeout"
    monkeypatch.undo()
    alone, _ = index(zoo, out=zoo.parent / "alone.parquet", workers=1)
    expected = {Path(r["path"]).name: r["status"] for r in alone.table.to_pylist()}
    assert expected.items() >= statuses.items() and len(expected) == len(statuses) + 2


def test_a_cut_whose_key_frame_is_not_shown_is_fine_if_it_decodes(tmp_path: Path) -> None:
    """As `ffmpeg -ss` cuts with `-c copy`: an edit list hides the frames before the cut, and with them the key frame."""
    whole = numbered_video(tmp_path / "whole.mp4", "libx264", frames=20)
    (tmp_path / "data" / "a").mkdir(parents=True)
    for name, first in (("hidden.mp4", 0), ("lost.webm", 5)):
        source = whole if first == 0 else numbered_video(tmp_path / "whole.webm", "libvpx-vp9", frames=20)
        with (
            av.open(str(source)) as container,
            av.open(str(tmp_path / "data" / "a" / name), "w", options={"avoid_negative_ts": "disabled"}) as cut,
        ):
            stream = cut.add_stream_from_template(container.streams.video[0])
            for packet in [packet for packet in container.demux(video=0) if packet.size][first:]:
                assert packet.pts is not None and packet.dts is not None and packet.time_base is not None
                shift = round(5 / 12 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                cut.mux(packet)
    manifest, _ = index(tmp_path / "data")
    facts = row(manifest, "hidden.mp4")
    assert (facts["key_frames"], facts["frames"], facts["status"], facts["suspicion"]) == (0, 15, "ok", "")
    assert row(manifest, "lost.webm")["status"] in ("corrupt", "unreadable")


def shown_by_ffprobe(path: Path) -> int:
    command = [
        "ffprobe",
        "-v",
        "quiet",
        "-select_streams",
        "V:0",
        "-count_frames",
        "-of",
        "json",
        "-show_streams",
        str(path),
    ]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["streams"]
    return int(streams[0]["nb_read_frames"])


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_frame_counts_agree_with_decoding_and_with_ffprobe(real_videos: Path) -> None:
    """`index`, `index --decode` and FFmpeg, on real videos and on odd ones."""
    damaged = {"lost1s.ts": "corrupt"}
    videos = [
        path
        for folder in (real_videos, real_videos.parent / "cases")
        for path in folder.glob("*")
        if is_video(path.name)
    ]
    assert len(videos) > 20
    for path in sorted(videos):
        probed, decoded = (file_facts(path, None, decode) for decode in (False, True))
        assert probed is not None and decoded is not None
        if probed["status"] == "ok":
            assert decoded["status"] == damaged.get(path.name, "ok"), path
            assert probed["frames"] == decoded["frames"] == shown_by_ffprobe(path), path
        else:
            assert decoded["status"] == probed["status"], path
