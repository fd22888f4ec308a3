"""Data sets under the class numbers of a network, and the forms of data that single annotation files are."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.classes import for_classes, labeled
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def names(manifest: Manifest) -> dict[str, str]:
    """The class name of each clip."""
    rows = manifest.table.select(["id", "label"]).to_pylist()
    return {row["id"]: manifest.labels[row["label"]] for row in rows}


def test_clips_keep_their_class_names_in_any_order(manifest: Manifest) -> None:
    there = (*reversed(manifest.labels), "Folding")
    other = for_classes(manifest, there, "run 'r'")
    assert other.labels == there and names(other) == names(manifest)
    assert other.table["label"].to_pylist() != manifest.table["label"].to_pylist()
    assert for_classes(manifest, manifest.labels, "run 'r'") is manifest


def test_clips_of_unknown_classes_are_left_out_and_said(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    known = manifest.labels[3:]
    logging.getLogger("ssv2rt").addHandler(caplog.handler)
    try:
        other = for_classes(manifest, known, "run 'r'")
    finally:
        logging.getLogger("ssv2rt").removeHandler(caplog.handler)
    assert names(other) == {clip: name for clip, name in names(manifest).items() if name in known}
    left_out = len(manifest.table) - len(other.table)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"3 of the 10 classes of '{manifest.folder}' are no classes of run 'r', so {left_out} of its 80" in message
    assert manifest.labels[0] in message
    with pytest.raises(
        UserError, match="no class of .* is a class of run 'r': .* and 7 more; run 'r' has 'x', 'y'; give"
    ):
        for_classes(manifest, ("x", "y"), "run 'r'")


def test_only_clips_with_a_label_are_evaluated(manifest: Manifest) -> None:
    split = manifest.split("train")
    classes = split.classes.copy()
    classes[::2] = -1
    found = labeled(replace(split, classes=classes))
    assert len(found) == len(split) // 2 and found.ids.to_pylist() == split.ids.to_pylist()[1::2]
    assert found.path(0) == split.path(1) and found.video_meta(0) == split.video_meta(1)
    assert labeled(split) is split
    with pytest.raises(UserError, match="no clip of this split of .* has a label"):
        labeled(replace(split, classes=np.full(len(split), -1, np.int32)))


def test_unlabeled_clips_stay_unlabeled(manifest: Manifest) -> None:
    at = manifest.table.column_names.index("label")
    without = manifest.table.set_column(
        at, "label", pa.array([-1, *manifest.table["label"].to_pylist()[1:]], pa.int32())
    )
    other = for_classes(replace(manifest, table=without), tuple(reversed(manifest.labels)), "run 'r'")
    assert other.table["label"][0].as_py() == -1 and len(other.table) == 80


def test_the_split_all_has_every_clip(manifest: Manifest) -> None:
    assert len(manifest.split("all")) == 80
    without = manifest.table.filter(pc.not_equal(manifest.table["split"], "test"))
    with pytest.raises(UserError, match=r"no test clips in .* \(there are: 60 train, 10 validation\)"):
        replace(manifest, table=without).split("test")


def test_one_annotation_file_is_a_data_set(tiny_set: Path, tmp_path: Path) -> None:
    whole = list_clips(tiny_set)
    for split in ("train", "validation", "test"):
        listing = list_clips(tiny_set / f"{split}.json")
        assert listing.labels == whole.labels and listing.folder == tiny_set
        assert listing.clips == [clip for clip in whole.clips if clip.split == split]
    shutil.copytree(tiny_set / "videos", tmp_path / "videos")
    shutil.copy(tiny_set / "test-answers.csv", tmp_path)
    answers = list_clips(tmp_path / "test-answers.csv")
    assert {clip.id: answers.labels[clip.label] for clip in answers.clips} == {
        clip.id: whole.labels[clip.label] for clip in whole.clips if clip.split == "test"
    }
    shutil.copy(tiny_set / "train.json", tmp_path / "mine.json")
    mine = list_clips(tmp_path / "mine.json")
    assert {clip.split for clip in mine.clips} == {"train", "validation"} and len(mine.clips) == 60
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(UserError, match="no folder 'videos' beside"):
        list_clips(tmp_path / "mine.json")


def test_labels_of_annotations_may_be_decomposed(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels.json").write_text(json.dumps({"Caf\u00e9": "0", "Tea": "1"}))
    (tmp_path / "train.json").write_text(
        json.dumps([{"id": "1", "template": "Cafe\u0301"}, {"id": 2, "template": "Tea "}])
    )
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "3", "template": "Tea"}]))
    assert [clip.label for clip in list_clips(tmp_path).clips] == [0, 1, 1]
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "3", "template": "tea"}]))
    with pytest.raises(
        UserError, match="clip '3' has the label 'tea', which is not among the classes; did you mean 'Tea'"
    ):
        list_clips(tmp_path)
