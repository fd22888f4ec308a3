"""Class folders and tables are detected automatically, and give the same manifest."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.core.log import printable
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.listing import (
    Clip,
    Listing,
    encode_frames,
    escape_non_utf8,
    hold_out_validation,
    path_to_text,
    text_to_path,
)
from ssv2rt.video.probe import probe
from tests.cli import ssv2rt
from tests.conftest import numbered_video

with TemporaryDirectory() as _folder:
    CLIP = numbered_video(Path(_folder) / "x.mp4", "libx264", frames=2).read_bytes()


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
        ("a.mp4,up\nb.mp4,down\n", "has no column 'path'; expected the columns path, label"),
        ("path,label\n", "lists no clips"),
        (
            "",
            "cannot read '.*': it has no line with names of columns; expected a table of clips, whose first line is path",
        ),
        ("\n \n\r\n", "it has no line with names of columns"),
        ("x" * 100_000, "it has no line with names of columns"),
        ("path,label,split\na.mp4,up,trian\n", "line 2 has the split 'trian'; did you mean 'train'"),
        ("path,label,split,split\na.mp4,up,train,train\n", "more than one column 'split'"),
        (
            "path,label\na.mp4,up\na.mp4,down\n",
            "clip 'a.mp4' is listed twice, in line 2 of t.csv and in line 3, with another",
        ),
        ("path,label\na.mp4,up\n,down\n", "line 3 has no path"),
        ("path,label\na.mp4,up,extra\n", "line 2 has 3 values for 2 columns; expected 'path,label', with quotes"),
        ("path,label,split\na.mp4,up\n", "line 2 has 2 values for 3 columns"),
        (
            'path,label\n"a\nb.mp4",up\n\n"c.mp4,up\nd.mp4,up\n',
            "line 5 is not a row of a table .unexpected end of data",
        ),
        ('path,label\na.mp4,up\n"b"c.mp4,up\n', "line 3 is not a row of a table"),
        ("path,label\na.mp4," + "x" * 200_000, "line 2 is not a row of a table .field larger than"),
        (
            "path,label\nC:\\v\\a.mp4,up\n",
            r"line 2 has 'C:.v.a.mp4', a path of another machine; expected paths relative to",
        ),
        ("path;label\n\\\\server\\v\\a.mp4;up\n", "line 2 has '.*', a path of another machine"),
        ("path,label\nC:/v/a.mp4,up\n", "a path of another machine"),
        ("path,label\ns3://b/a.mp4,up\n", "line 2 has 's3://b/a.mp4', an address; copy the videos"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(content, newline="")
    with pytest.raises(UserError, match=says) as caught:
        list_clips(tmp_path / "t.csv")
    assert len(str(caught.value).splitlines()) == 1


TABLE = {"up/a,b.mp4": ("train", "up; fast"), "c.mp4": ("validation", "down"), "d.mp4": ("test", "")}


@pytest.mark.parametrize(
    "content",
    [
        b'path,label,split\n"up/a,b.mp4","up; fast",train\nc.mp4,down,val\nd.mp4,,test\n',
        b'path;label;split\nup/a,b.mp4;"up; fast";train\nc.mp4;down;val\nd.mp4;;test',
        b"path\tlabel\tsplit\nup/a,b.mp4\tup; fast\ttrain\nc.mp4\tdown\tval\nd.mp4\t\ttest\n",
        b'\xef\xbb\xbf"path";"label";"split"\r\n"up/a,b.mp4";"up; fast";"train"\r\nc.mp4;"down";"val"\r\nd.mp4;"";"test"\r\n',
        '\ufeffpath\tlabel\tsplit\r\nup/a,b.mp4\t"up; fast"\ttrain\r\nc.mp4\tdown\tval\r\nd.mp4\t\ttest\r\n'.encode(
            "utf-16-le"
        ),
        b'\n\nSplit, Label ,PATH,notes\r"train", up; fast ,"up/a,b.mp4",x\r\r,,,\rval,down,c.mp4,\rtest,,d.mp4,\r',
        b'path,label,split\n"up\\a,b.mp4","up; fast",train\nc.mp4,down,val,,\nd.mp4,,test\n',
        b'path,label,split\n"up/a,b.mp4","up; fast",train\nc.mp4,down,val\nc.mp4,down,dev\nd.mp4,,test\nd.mp4,,test\n',
    ],
    ids=["commas", "semicolons", "tabs", "excel", "utf-16", "odd", "backslashes", "repeated"],
)
def test_tables_as_programs_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    (tmp_path / "t.tsv").write_bytes(b"notes\n")
    for root in (tmp_path, tmp_path / "t.csv"):
        assert found(list_clips(root)) == TABLE


def test_repeated_rows_and_backslashes_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("path,label\nv\\a.mp4,up\nv/a.mp4,up\nb\\c.mp4,up\n d.mp4 ,up\n")
    (tmp_path / "d.mp4").touch()
    (tmp_path / "b\\c.mp4").touch()  # a file of this very name
    assert set(found(list_clips(tmp_path))) == {"v/a.mp4", "b\\c.mp4", "d.mp4"}
    said = capfd.readouterr().err
    assert "t.csv: 1 rows repeat others; each clip is used once" in said
    assert "t.csv: 1 paths have backslashes, which are read as /" in said


def test_clips_of_two_splits_are_told_apart(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("path,label\na.mp4,up\n")
    with pytest.raises(UserError, match="val.csv: clip 'a.mp4' is listed twice, in line 2 of train.csv and in line 2"):
        list_clips(tmp_path)


@given(
    st.lists(
        st.tuples(st.text("ab ,;\t\"'\n\r\\é", min_size=1), st.text("xy,;\t\"'\n é")),
        min_size=1,
        unique_by=lambda r: r[0],
    )
)
def test_what_a_csv_writer_wrote_is_read(rows: list[tuple[str, str]]) -> None:
    """Whatever the separator, and the text between quotes."""
    rows = [(path, label) for path, label in rows if path.strip() and not path.startswith("\\\\")] or [("a", "b")]
    for separator in ",;\t":
        with TemporaryDirectory() as folder:
            with (Path(folder) / "t.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter=separator).writerows([("path", "label"), *rows])
            expected: dict[str, set[str]] = {}
            for path, label in rows:
                expected.setdefault(path.replace("\\", "/"), set()).add(label.strip())
            if all(len(labels) == 1 for labels in expected.values()):
                listing = list_clips(Path(folder) / "t.csv")
                assert {path: label for path, (_, label) in found(listing).items()} == {
                    path: labels.pop() for path, labels in expected.items()
                }


@given(content=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".tsv", ".parquet"]))
def test_any_bytes_are_a_table_or_refused_in_one_line(content: bytes, suffix: str) -> None:
    said = ""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"t{suffix}"
        for head in (b"", b"path,label\n"):
            path.write_bytes(head + content)
            try:
                list_clips(path)
            except UserError as error:
                said = printable(str(error))
            assert len(said.splitlines()) < 2


def test_folders_of_frames_are_said_to_be_no_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "frames", "up/1/0001.jpg", "up/1/0002.jpg", "down/2/0001.jpg")
    with pytest.raises(
        UserError, match=r"no videos in '.*/frames', but pictures such as '.*/down/2/0001.jpg'; make a video"
    ):
        list_clips(root)
    with pytest.raises(
        UserError, match=r"ffmpeg -framerate 12 -pattern_type glob -i '.*/up/1/\*.jpg' -c copy clip.mkv"
    ):
        list_clips(root / "up" / "1")
    touch(root, "up/x.mp4")
    assert found(list_clips(root)) == {"up/x.mp4": ("train", "up")}
    assert "2 folders in '" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_command_makes_a_video_of_frames_of_odd_size(suffix: str, tmp_path: Path) -> None:
    frames = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=43x35:r=12:d=0.5", f"{tmp_path}/%03d{suffix}"]
    subprocess.run(frames, check=True)
    _, _, command = encode_frames(tmp_path / f"001{suffix}").partition(": ")
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True, capture_output=True)
    info = probe(tmp_path / "clip.mkv")
    assert (info.frames, info.width, info.height) == (6, 43, 35)


def test_frames_of_ssv2_are_said_to_be_no_videos(tmp_path: Path, tiny_set: Path) -> None:
    for name in ("labels", "train", "validation"):
        (tmp_path / f"{name}.json").write_text((tiny_set / f"{name}.json").read_text())
    touch(tmp_path, "20bn-something-something-v2/1/00001.jpg")
    with pytest.raises(UserError, match="no videos in '.*/20bn-something-something-v2', but pictures such as"):
        list_clips(tmp_path)


def test_every_extension_of_videos_is_found(tmp_path: Path) -> None:
    names = [
        "hevc",
        "m4s",
        "av1",
        "obu",
        "dv",
        "mod",
        "tod",
        "ogm",
        "apng",
        "265",
        "h265",
        "ivf",
        "mts",
        "m2ts",
        "y4m",
        "AVI",
    ]
    root = touch(tmp_path, *(f"a/{name}.{name}" for name in names), "a/no.txt", "a/no.jpg")
    manifest = open_manifest(root)
    assert set(manifest.table["path"].to_pylist()) == {f"a/{name}.{name}" for name in names}
    assert set(manifest.table["status"].to_pylist()) == {"empty file"}
    (root / "a" / "mod.mod").write_bytes(b"M.K." * 300)  # music
    (root / "a" / "m4s.m4s").write_bytes(b"\0\0\0\x18styp" + bytes(500))
    statuses = {r["path"]: r["status"] for r in index(root)[0].table.to_pylist()}
    assert statuses["a/mod.mod"] == "unreadable" and statuses["a/m4s.m4s"] == "truncated"


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not name.startswith(b".") and not {*b"/\0\\"} & {*name} and name.strip()
) | st.sampled_from([b"\\xff", b"\xff", b"\\x5cxff", b"\\x5c\xff", b"\x1b[2J", b"a\nb", "é".encode(), b"e\xcc\x81"])


@given(name=NAMES)
def test_text_of_a_path_leads_back_to_it(name: bytes) -> None:
    path = os.fsdecode(name)
    text = path_to_text(path)
    assert text.encode() and text_to_path(text) == path
    assert (text == path) == (escape_non_utf8(path) == path and "\\x5c" not in text)


@settings(max_examples=15, deadline=None)
@given(
    classes=st.lists(NAMES, min_size=2, max_size=3, unique=True),
    clips=st.lists(NAMES, min_size=1, max_size=3, unique=True),
)
def test_class_folders_and_clips_of_any_name_are_used(classes: list[bytes], clips: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(os.fsdecode(os.fsencode(folder) + b"/\xfe data"))
        files = set()
        for name in classes:
            place = Path(os.fsdecode(os.fsencode(root) + b"/v" + name))
            place.mkdir(parents=True)
            for clip in clips:
                files.add(place / os.fsdecode(b"v" + clip + b".mp4"))
                (place / os.fsdecode(b"v" + clip + b".mp4")).write_bytes(CLIP)
        done = ssv2rt("index", root)
        assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr, done.stderr
        manifest = open_manifest(root)
        assert len(manifest.labels) == len(classes) and set(manifest.table["status"].to_pylist()) == {"ok"}
        splits = [
            manifest.split(name) for name in ("train", "validation") if name in manifest.table["split"].to_pylist()
        ]
        assert {split.path(row) for split in splits for row in range(len(split))} == files
        for label in manifest.labels:
            assert (text_to_path(label) != label) == (printable(f" is called '{label}': ") in done.stderr)


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
    (root / "train" / "up" / "itself").symlink_to("itself")
    (root / "train" / "itself").symlink_to("itself")
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


AS_NOBODY = """
import os, sys
from pathlib import Path
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.detect_format import list_clips
os.setuid(65534)
try:
    list_clips(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_without_permission_is_one_line(mode: int) -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        touch(Path(folder), "data/up/a.mp4")
        os.chmod(Path(folder) / "data", mode)
        command = [sys.executable, "-c", AS_NOBODY, f"{folder}/data"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(
            f"cannot read the data set '{folder}/data': Permission"
        ), done
