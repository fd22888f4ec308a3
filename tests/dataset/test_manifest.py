"""The manifest is built once, stored beside the data, and completed when the data changes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest


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
    assert split.frames.min() >= 10 and split.frames.max() <= 14
    assert all(split.path(row).is_file() for row in range(len(split)))


def test_second_call_reads_the_manifest(data: Path) -> None:
    assert probed(data) == 80
    assert probed(data) == 0


def test_manifest_of_read_only_data_is_in_the_cache(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssv2rt.dataset import index as module

    write = module.write_manifest

    def refuse(path: Path, manifest: Manifest) -> None:
        if path.parent == data:
            raise PermissionError(13, "Permission denied")
        write(path, manifest)

    monkeypatch.setattr(module, "write_manifest", refuse)
    assert probed(data) == 80
    assert not (data / "manifest.parquet").exists()
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
