"""The manifest is built once, stored beside the data, and completed when the data changes."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.manifest import Manifest, manifest_paths, read_manifest, write_manifest
from tests.cli import ssv2rt


@pytest.fixture
def data(tmp_path: Path, tiny_set: Path) -> Path:
    shutil.copytree(tiny_set, tmp_path / "data", ignore=shutil.ignore_patterns("manifest.parquet"))
    return tmp_path / "data"


def probed(data: Path) -> int:
    """Number of clips that `open_manifest` probes."""
    seen = [0]
    open_manifest(data, progress=lambda done, total: seen.append(done))
    return seen[-1]


def test_every_clip_has_a_row(data: Path) -> None:
    manifest = open_manifest(data)
    entries = json.loads((data / "train.json").read_text())
    split = manifest.split("train")
    assert split.ids.to_pylist() == [entry["id"] for entry in entries]
    assert [split.labels[c] for c in split.classes] == [
        entry["template"].replace("[", "").replace("]", "") for entry in entries
    ]
    assert set(split.widths) == {64} and set(split.heights) == {48}
    assert repr(manifest).startswith(f"<Manifest of '{data}': ") and repr(split).endswith(
        f"{len(entries)} clips, 10 classes>"
    )
    assert split.frames.min() >= 10 and split.frames.max() <= 14
    assert all(split.path(row).is_file() for row in range(len(split)))


def test_second_call_reads_the_manifest(data: Path) -> None:
    assert probed(data) == 80
    assert probed(data) == 0


def test_missing_clips_are_tolerated_up_to_max_bad(data: Path) -> None:
    split = open_manifest(data).split("train")
    lost = split.path(3)
    os.rename(lost, data / "aside.webm")
    (data / "manifest.parquet").unlink()
    manifest = open_manifest(data)
    with pytest.raises(UserError, match=r"1 of 60 train clips cannot be used, such as .*: missing; at most 1.00%"):
        manifest.split("train", max_bad=0.01)
    assert len(manifest.split("train", max_bad=0.05)) == len(split) - 1
    os.rename(data / "aside.webm", lost)
    assert len(open_manifest(data).split("train", max_bad=0.0)) == len(split)


def test_changed_annotations_rebuild_the_manifest(data: Path) -> None:
    open_manifest(data)
    entries = json.loads((data / "train.json").read_text())
    (data / "train.json").write_text(json.dumps(entries[:20]))
    assert len(open_manifest(data).split("train")) == 20


def test_interrupted_call_keeps_its_results(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssv2rt.dataset import file_facts as look

    monkeypatch.setattr(look, "_SECONDS_PER_PART", -1.0)  # every file is a part

    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_manifest(data, progress=stop)
    calls = []
    probe = look.probe
    monkeypatch.setattr(look, "probe", lambda path: calls.append(path) or probe(path))
    assert len(open_manifest(data).split("train")) == 60
    assert len(calls) == 80 - 32


def test_damaged_manifest_is_rebuilt(data: Path) -> None:
    (data / "manifest.parquet").write_bytes(b"PAR1 this is not")
    assert probed(data) == 80
    assert probed(data) == 0


def test_an_empty_split_is_an_error(data: Path) -> None:
    manifest = open_manifest(data)
    shutil.rmtree(data / "videos")
    (data / "videos").mkdir()
    (data / "manifest.parquet").unlink()
    assert len(manifest.split("test")) == 10
    with pytest.raises(UserError, match="60 of 60 train clips"):
        open_manifest(data).split("train", max_bad=1.0)


def make_old(path: Path, frames: dict[str, int], **changed: dict[str, object]) -> None:
    """Makes a manifest one of version 2, with other frame counts, and other values of columns, by id."""
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"ssv2rt"]) | {"version": 2}
    for name, values in {"frames": frames, **changed}.items():
        old = dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True)) | values
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(list(old.values()), table.schema.field(name).type))
    pq.write_table(table.replace_schema_metadata({b"ssv2rt": json.dumps(facts).encode()}), path)


def row(manifest: Manifest, clip: str) -> dict[str, object]:
    return next(row for row in manifest.table.to_pylist() if row["id"] == clip)


@pytest.mark.parametrize("how", ["index", "training"])
def test_an_old_manifest_is_completed(data: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = open_manifest(data)
    ids = manifest.table["id"].to_pylist()
    right = dict(zip(ids, manifest.table["frames"].to_pylist(), strict=True))
    make_old(data / "manifest.parquet", {ids[0]: right[ids[0]] + 1})
    seen = [0]
    if how == "index":
        completed, _ = index(data, progress=lambda done, total: seen.append(done))
    else:
        completed = open_manifest(data, progress=lambda done, total: seen.append(done))
    assert seen[-1] == 80 and row(completed, ids[0])["frames"] == right[ids[0]]
    assert completed.table.select(manifest.table.column_names) == manifest.table
    assert "is of an older version, which counted the frames of some videos wrong" in capfd.readouterr().err
    assert probed(data) == 0


def test_an_old_manifest_keeps_what_decoding_found_if_it_is_still_right(data: Path) -> None:
    """A clip that decodes but has another count is not vouched for, and one that did not decode is decoded again."""
    manifest, path = index(data, decode=True)
    ids = manifest.table["id"].to_pylist()
    right = dict(zip(ids, manifest.table["frames"].to_pylist(), strict=True))
    make_old(path, {ids[0]: right[ids[0]] + 1}, status={ids[1]: "corrupt"}, decoded={ids[2]: False})
    completed = index(data)[0]
    assert [row(completed, clip)["decoded"] for clip in ids[:4]] == [False, True, False, True]
    assert set(completed.table["status"].to_pylist()) == {"ok"}
    assert dict(zip(ids, completed.table["frames"].to_pylist(), strict=True)) == right


def test_an_old_manifest_named_by_its_path_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    index(data, out=out)
    make_old(out, {})
    done = ssv2rt("train", "--data", out, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"Error: the manifest '{out}' is of an older version, which counted the frames of some videos wrong; "
        f"run `ssv2rt index DATA --out '{out}'` again"
    )
    index(data, out=out)
    assert len(open_manifest(out).table) == 80


def test_an_old_manifest_in_the_cache_does_not_hide_a_newer_one(data: Path) -> None:
    """An interrupted call on read-only data resumes in the cache, though there is an old manifest beside the data."""
    index(data)
    beside, cached = manifest_paths(data)
    cached.parent.mkdir(parents=True)
    newer = read_manifest(beside)
    assert newer is not None
    write_manifest(cached, replace(newer, table=newer.table.slice(0, 50), fingerprint=""))
    make_old(beside, {})
    seen: list[int] = []
    index(data, trust=True, progress=lambda done, total: seen.append(done))
    assert seen[-1] == 80 and read_manifest(beside).is_current()  # type: ignore[union-attr]
    make_old(beside, {})
    seen.clear()
    index(data, trust=True, progress=lambda done, total: seen.append(done))
    assert seen == [80]


def test_folders_above_the_manifest_do_not_become_columns(tmp_path: Path, tiny_set: Path) -> None:
    root = tmp_path / "split=train" / "label=3"
    shutil.copytree(tiny_set, root, ignore=shutil.ignore_patterns("manifest.parquet"))
    assert probed(root) == 80 and probed(root) == 0


def test_a_path_that_no_recipe_can_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    root.mkdir()
    done = ssv2rt("train", "--data", root, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"--data '{tmp_path}/\\xff' is not UTF-8, as paths in recipes must be; make a link to it" in done.stderr
