"""Class folders and tables are detected automatically, and give the same manifest."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.listing import Clip, Listing, hold_out_validation
from tests.conftest import numbered_video


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def found(listing: Listing) -> dict[str, tuple[str, str]]:
    """Split and label of each path."""
    return {c.path: (c.split, listing.labels[c.label] if c.label >= 0 else "") for c in listing.clips}


@pytest.mark.parametrize("validation", ["validation", "val", "Valid"])
def test_class_folders_within_splits(tmp_path: Path, validation: str) -> None:
    root = touch(
        tmp_path, "train/up/a.mp4", "train/down/b.webm", "train/down/deep/c.AVI", f"{validation}/up/a.mp4",
        "test/down/e.mkv", "train/up/notes.txt", "train/.hidden/f.mp4", "train/up/.g.mp4",
    )  # fmt: skip
    listing = list_clips(root)
    assert listing.labels == ("down", "up")
    assert found(listing) == {
        "train/up/a.mp4": ("train", "up"),
        "train/down/b.webm": ("train", "down"),
        "train/down/deep/c.AVI": ("train", "down"),
        f"{validation}/up/a.mp4": ("validation", "up"),
        "test/down/e.mkv": ("test", "down"),
    }


def test_class_folders_alone_have_a_tenth_held_out(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/{number}.mp4" for name in ("up", "down") for number in range(30)), "one/x.mp4")
    listing = list_clips(root)
    held = [c for c in listing.clips if c.split == "validation"]
    assert [sum(c.label == label for c in held) for label in range(3)] == [3, 0, 3]
    assert list_clips(root) == listing


def test_a_folder_of_videos_has_no_labels(tmp_path: Path) -> None:
    listing = list_clips(touch(tmp_path, "a.mp4", "b.webm", "c.txt"))
    assert listing.labels == () and found(listing) == {"a.mp4": ("test", ""), "b.webm": ("test", "")}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_table(tmp_path: Path, suffix: str, place: str) -> None:
    columns = {
        "path": ["x/ä, b.mp4", "/far/away.mp4", "c.mp4"],
        "label": ["up, up", "down", ""],
        "split": ["train", "val", "test"],
    }
    path = tmp_path / f"clips.{suffix}"
    if suffix == "csv":
        path.write_text('path,label,split\n"x/ä, b.mp4","up, up",train\n/far/away.mp4,down,val\nc.mp4,,test\n')
    else:
        pq.write_table(pa.table(columns), path)
    listing = list_clips(path if place == "file" else tmp_path)
    assert listing.folder == tmp_path
    assert found(listing) == {
        "x/ä, b.mp4": ("train", "up, up"),
        "/far/away.mp4": ("validation", "down"),
        "c.mp4": ("test", ""),
    }


def test_numeric_labels_are_sorted_by_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,path\n10,a.mp4\n9,b.mp4\n010,c.mp4\n")
    listing = list_clips(tmp_path / "t.csv")
    assert listing.labels[0] == "9" and {"10", "010"} == set(listing.labels[1:])


def test_a_table_for_each_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.mp4,up\n")
    (tmp_path / "val.csv").write_text("path,label\nb.mp4,down\n")
    assert found(list_clips(tmp_path)) == {"a.mp4": ("train", "up"), "b.mp4": ("validation", "down")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,name\na.mp4,up\n", "has no column 'label'; expected the columns path, label"),
        ("path,label\n", "lists no clips"),
        ("", "cannot read"),
        ("path,label,split\na.mp4,up,trian\n", "row 1 has the split 'trian'; did you mean 'train'"),
        ("path,label\na.mp4,up\na.mp4,down\n", "clip 'a.mp4' is listed twice"),
        ("path,label\na.mp4,up\n,down\n", "row 2 has no path"),
        ("path,label\na.mp4,up,extra\n", "cannot read"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        list_clips(tmp_path / "t.csv")


def test_folders_that_are_not_data_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(UserError, match="no data set in"):
        list_clips(tmp_path)
    with pytest.raises(UserError, match="neither a folder nor a"):
        list_clips(tmp_path / "notes.txt")
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("path,label\na.mp4,up\n")
    with pytest.raises(UserError, match=r"several tables of clips: a.csv, b.csv"):
        list_clips(tmp_path)


def test_every_format_gives_the_same_clips(tmp_path: Path, tiny_set: Path) -> None:
    """The same videos as SSv2's JSON, as class folders, and as a table."""
    ssv2 = open_manifest(tiny_set)
    folders, rows = tmp_path / "folders", ["path,label,split"]
    for split in ("train", "validation"):
        part = ssv2.split(split)
        for row in range(len(part)):
            label = part.labels[part.classes[row]]
            place = folders / split / label / part.path(row).name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(part.path(row).resolve())
            rows.append(f"{json.dumps(str(part.path(row).resolve()))},{label},{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    for other in (open_manifest(folders), open_manifest(tmp_path / "table.csv")):
        for split in ("train", "validation"):
            a, b = ssv2.split(split), other.split(split)
            facts = [
                {(s.path(r).name, s.labels[s.classes[r]], int(s.frames[r]), int(s.widths[r])) for r in range(len(s))}
                for s in (a, b)
            ]
            assert facts[0] == facts[1] and len(a) == len(b)


@given(st.lists(st.tuples(st.text("abcdef", min_size=1), st.integers(-1, 3)), unique_by=lambda x: x[0]))
def test_held_out_clips_are_balanced_and_independent_of_order(entries: list[tuple[str, int]]) -> None:
    clips = [Clip(name, name, "train", label) for name, label in entries]
    held = {c.id for c in hold_out_validation(clips) if c.split == "validation"}
    assert held == {c.id for c in hold_out_validation(clips[::-1]) if c.split == "validation"}
    for label in range(4):
        members = [c for c in clips if c.label == label]
        count = sum(c.id in held for c in members)
        assert count == (max(1, round(len(members) / 10)) if len(members) > 1 else 0)
    assert not any(c.id in held for c in clips if c.label < 0)


def test_videos_in_other_containers_are_found_beside_ssv2_annotations(tmp_path: Path, tiny_set: Path) -> None:
    for name in ("labels", "train", "validation"):
        (tmp_path / f"{name}.json").write_text((tiny_set / f"{name}.json").read_text())
    (tmp_path / "videos").mkdir()
    ids = [entry["id"] for entry in json.loads((tiny_set / "train.json").read_text())]
    for name in ids[:2]:
        numbered_video(tmp_path / "videos" / f"{name}.mp4", "libx264", frames=5)
    assert open_manifest(tmp_path).split("train").ids.to_pylist() == ids[:2]


def test_folders_beside_the_splits_are_ignored(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/up/a.mp4", "train/down/b.mp4", "val/up/c.mp4", "runs/x/d.mp4", "notes/e.txt")
    assert set(found(list_clips(root)).values()) == {("train", "up"), ("train", "down"), ("validation", "up")}


def test_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    listing = list_clips(touch(tmp_path, "train/a.mp4", "bus/b.mp4"))
    assert listing.labels == ("bus", "train")


def test_videos_outside_class_folders_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_clips(touch(tmp_path, "train/up/a.mp4", "train/loose.mp4"))
    assert "1 videos in" in capsys.readouterr().err


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "train/up/a.mp4", "train/down/b.mp4")
    touch(tmp_path / "else", "c.mp4")
    (root / "train" / "up" / "more").symlink_to(tmp_path / "else")
    (root / "train" / "up" / "loop").symlink_to(root / "train" / "up")
    assert sorted(found(list_clips(root))) == ["train/down/b.mp4", "train/up/a.mp4", "train/up/more/c.mp4"]


@pytest.mark.parametrize("labels", [["1", "01", "001", "2"], ["9" * 5000, "1"]])
def test_order_of_numeric_labels_is_unique(tmp_path: Path, labels: list[str]) -> None:
    rows = "".join(f"{n}.mp4,{label}\n" for n, label in enumerate(labels))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    listing = list_clips(tmp_path / "t.csv")
    assert listing.labels == (("001", "01", "1", "2") if len(labels) == 4 else ("1", "9" * 5000))


def test_unusual_tables_are_refused_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [b"a.mp4"], "label": ["x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("path,label,path\na,b,c\n")
    for name, says in (("b.parquet", "column 'path' holds binary"), ("c.csv", "more than one column 'path'")):
        with pytest.raises(UserError, match=says):
            list_clips(tmp_path / name)


def test_other_tables_in_the_folder_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/a.mp4", "train/down/b.mp4")
    (tmp_path / "notes.csv").write_bytes(b"caf\xe9,x\n1,2\n")
    os.mkfifo(tmp_path / "pipe.csv")
    assert list_clips(tmp_path).labels == ("down", "up")


def test_tables_of_one_split_are_joined(tmp_path: Path) -> None:
    for name, clip in (("train", "a"), ("val", "b"), ("valid", "c")):
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{clip}.mp4,up\n")
    assert [c.split for c in list_clips(tmp_path).clips].count("validation") == 2


def test_names_of_ssv2_videos_in_any_case(tmp_path: Path, tiny_set: Path) -> None:
    for name in ("labels", "train", "validation"):
        (tmp_path / f"{name}.json").write_text((tiny_set / f"{name}.json").read_text())
    ids = [entry["id"] for entry in json.loads((tiny_set / "train.json").read_text())]
    touch(tmp_path, f"videos/{ids[0]}.WEBM", f"videos/{ids[1]}.mkv", f"videos/._{ids[2]}.webm")
    paths = {c.id: c.path for c in list_clips(tmp_path).clips}
    assert [paths[i] for i in ids[:3]] == [f"videos/{ids[0]}.WEBM", f"videos/{ids[1]}.mkv", f"videos/{ids[2]}.webm"]


def test_folders_of_frames_are_no_clips(tmp_path: Path) -> None:
    for name in ("up", "down"):
        (tmp_path / name / "clip").mkdir(parents=True)
        (tmp_path / name / "clip" / "0001.jpg").touch()
    with pytest.raises(UserError, match="pictures such as '0001.jpg'; make a video of each folder's frames"):
        list_clips(tmp_path)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_may_be_separated_by_semicolons_or_tabs(tmp_path: Path, mark: str) -> None:
    rows = [("path", "label", "split"), ("a,b.mp4", "up", "train"), ("c.mp4", "down, slowly", "val")]
    (tmp_path / "t.csv").write_text("".join(mark.join(row) + "\n" for row in rows))
    for root in (tmp_path, tmp_path / "t.csv"):
        listing = list_clips(root)
        assert listing.labels == ("down, slowly", "up")
        assert [(clip.path, clip.split) for clip in listing.clips] == [("a,b.mp4", "train"), ("c.mp4", "validation")]
