"""Reading SSv2's annotation files, with old and new file names."""

import json
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.annotations import read_annotations
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.listing import UNLABELED, Clip, Listing

LABELS = {"Moving something up": "0", "Turning the camera left while filming something": "1"}
TRAIN = [{"id": "7", "label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup"]}]
VALIDATION = [{"id": "8", "template": "Turning the camera left while filming [something]"}]
TEST = [{"id": "9"}, {"id": "10"}]


def write(root: Path, prefix: str = "", folder: str = "", **changes: object) -> Path:
    files = {"labels": LABELS, "train": TRAIN, "validation": VALIDATION, "test": TEST} | changes
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "videos").mkdir(exist_ok=True)
    for name, content in files.items():
        (root / folder / f"{prefix}{name}.json").write_text(json.dumps(content))
    return root


def labels_of(listing: Listing, split: str) -> list[tuple[str, int]]:
    return [(clip.id, clip.label) for clip in listing.clips if clip.split == split]


@pytest.mark.parametrize("folder", ["", "labels", "annotations"])
@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_both_file_naming_schemes_in_every_folder(tmp_path: Path, prefix: str, folder: str) -> None:
    found = read_annotations(write(tmp_path, prefix, folder))
    assert found.labels == tuple(LABELS)
    assert found is not None and found.folder == tmp_path
    assert found.clips == [
        Clip("7", "videos/7.webm", "train", 0),
        Clip("8", "videos/8.webm", "validation", 1),
        Clip("9", "videos/9.webm", "test", UNLABELED),
        Clip("10", "videos/10.webm", "test", UNLABELED),
    ]


def test_test_answers_csv(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "test-answers.csv").write_text("9;Moving something up\n")
    assert labels_of(list_clips(tmp_path), "test") == [("9", 0), ("10", UNLABELED)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"a": 1}}, "train.json: not SSv2's annotations"),
        ({"train": []}, "lists no clips"),
        ({"train": [{"template": "Moving [something] up"}]}, "not SSv2's annotations"),
        ({"train": [{"id": "7", "template": "Moving [something] upp"}]}, "not among the classes; did you mean"),
        ({"train": TRAIN + TRAIN}, "clip '7' is listed twice"),
        ({"train": TRAIN + VALIDATION}, "'8' is in both train and validation"),
        ({"train": [{"id": "../../x"}]}, "is not a valid file name"),
        ({"train": [{"id": "a\0b"}]}, "is not a valid file name"),
        ({"train": [{"id": "\ud800"}]}, "is not a valid file name"),
    ],
)
def test_malformed_annotations_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_annotations(write(tmp_path, **changes))


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(TRAIN), encoding="utf-8-sig")
    assert labels_of(list_clips(tmp_path), "train") == [("7", 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("9,Moving something up\n", "line 1 is '9,Moving something up'; expected id;label"),
        ("9;Moving something up\n9;Moving something up\n", "clip '9' is named twice"),
        ("", "names no clips"),
    ],
)
def test_malformed_answers_are_refused(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path)
    (tmp_path / "test-answers.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_annotations(tmp_path)


def test_answers_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "test-answers.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read"):
        read_annotations(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data '"):
        list_clips(tmp_path / "no")
    with pytest.raises(
        UserError, match="no data set in '.*', which is empty; expected SSv2's JSON files, a folder for each class"
    ):
        list_clips(tmp_path)
    write(tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(UserError, match="training needs train.json"):
        read_annotations(tmp_path)
    write(tmp_path)
    (tmp_path / "videos").rmdir()
    with pytest.raises(UserError, match="no videos in"):
        read_annotations(tmp_path)
