"""Hundreds of broken and unusual inputs: each gets exactly one row with a known status, and affects no other row."""

import csv
import os
import re
import shutil
import socket
from pathlib import Path

import pandas
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.engines.bundle import Bundle
from tests.cli import ssv2rt
from tests.conftest import numbered_video
from tests.pipelines.test_hostile import broken

CODECS = (("libvpx-vp9", "webm"), ("libx264", "mp4"), ("mpeg4", "avi"))
OF_EACH = 160
VOCABULARY = {
    "ok",
    *(f"error: {reason}" for reason in ("missing", "unreadable", "truncated", "corrupt", "no video stream")),
    *(
        f"error: {reason}"
        for reason in ("unsupported codec", "no permission", "out of memory", "not finite", "empty file")
    ),
}
ODD = (
    b"a,b.webm",
    b'"quoted".webm',
    b"'.webm",
    b"two\nlines.webm",
    b"cr\rlf\r\n.webm",
    b"tab\t.webm",
    b"\xff\xfe.webm",
    b"-dash.webm",
    b"--out.webm",
    b" .webm",
    b"=1+1.webm",
    b"%s{0}$HOME.webm",
    b"back\\slash.webm",
    "🎥é.webm".encode(),
    "\u202e.webm".encode(),
    b"a.webm.webm",
    b"x" * 250 + b".webm",
    b"NUL.webm",
    b"NA.webm",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> tuple[Path, list[bytes]]:
    """A folder, and the names in it that must get rows."""
    folder = tmp_path_factory.mktemp("corpus")
    names: list[bytes] = []

    def put(name: bytes | str, content: bytes) -> None:
        name = os.fsencode(name)
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(content)
        names.append(name)

    for codec, suffix in CODECS:
        good = numbered_video(folder / f"good-{codec}.{suffix}", codec, frames=30, gop=10)
        names.append(os.fsencode(good.name))
        for name, content in broken(good.read_bytes(), OF_EACH):
            put(f"{name} {codec}.{suffix}", content)
    clip = next(path for path in sorted((tiny_set / "videos").iterdir())).read_bytes()
    for name in ODD:
        put(name, clip)
    for number, content in enumerate(
        (b"", b"\0", b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile good.webm\n")
    ):
        put(f"strange {number}.mp4", content)
    put("video.gif", b"GIF89a")
    put("sound.ogv", b"OggS" + bytes(100))
    os.truncate(os.path.join(folder, "strange 1.mp4"), 1 << 40)  # a sparse file of a terabyte
    for name, make in (
        (b"pipe.webm", os.mkfifo),
        (b"loop.webm", lambda path: os.symlink(path, path)),
        (b"nowhere.webm", lambda path: os.symlink(b"/nowhere/at/all", path)),
        (b"zero.webm", lambda path: os.symlink(b"/dev/zero", path)),
    ):
        make(os.path.join(os.fsencode(folder), name))
        names.append(name)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket must be short
        listener.bind("socket.webm")
        os.chdir(here)
    names.append(b"socket.webm")
    (folder / "folder.webm").mkdir()  # searched like any other folder
    os.symlink(folder, folder / "again")
    return folder, names


def score(bundle: Bundle, folder: Path, *arguments: object) -> int:
    return ssv2rt("score", *arguments, "--engine", bundle.path, "--sort", cwd=folder).returncode


def test_corpus_has_exactly_one_row_per_file(
    tiny_bundle: Bundle, corpus: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    folder, names = corpus
    assert len(names) >= 500
    assert score(tiny_bundle, tmp_path, folder, "--out", "p.csv", "--logits") == 3
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="", encoding="utf-8")))
    expected = sorted(escape_non_utf8(os.path.join(str(folder), os.fsdecode(name))) for name in names)
    assert sorted(row["video"] for row in rows) == expected
    status = {row["video"]: row["status"] for row in rows}
    assert set(status.values()) <= VOCABULARY
    assert 60 < sum(value != "ok" for value in status.values()) < len(names) - 60
    for name in ODD:
        assert status[escape_non_utf8(os.path.join(str(folder), os.fsdecode(name)))] == "ok"
    for name in (
        "pipe.webm",
        "socket.webm",
        "zero.webm",
        "loop.webm",
        "strange 0.mp4",
        "strange 2.mp4",
        "strange 3.mp4",
    ):
        assert re.match("error: (unreadable|missing|empty file)$", status[str(folder / name)]), name
    assert status[str(folder / "nowhere.webm")] == "error: missing"

    # Rows of good videos are bit-identical to those of a run without the bad ones.
    (tmp_path / "good").mkdir()
    for codec, suffix in CODECS:
        shutil.copy(folder / f"good-{codec}.{suffix}", tmp_path / "good")
    assert score(tiny_bundle, tmp_path, "good", "--out", "good.csv", "--logits") == 0
    alone = {Path(row.pop("video")).name: row for row in csv.DictReader((tmp_path / "good.csv").open(newline=""))}
    among = {Path(row.pop("video")).name: row for row in rows}
    assert len(alone) == 3 and all(among[name] == row for name, row in alone.items())


def test_names_round_trip_through_common_readers(
    tiny_bundle: Bundle, corpus: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    folder, _ = corpus
    (tmp_path / "in").mkdir()
    for name in ODD:
        shutil.copy(os.path.join(os.fsencode(folder), name), os.path.join(os.fsencode(tmp_path / "in"), name))
    expected = sorted(escape_non_utf8(f"in/{os.fsdecode(name)}") for name in ODD)
    for out in ("p.csv", "p.jsonl", "p.parquet"):
        assert score(tiny_bundle, tmp_path, "in", "--out", out) == 0
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert sorted(row["video"] for row in csv.DictReader(file)) == expected
    assert sorted(pandas.read_csv(tmp_path / "p.csv", keep_default_na=False)["video"]) == expected
    assert sorted(pandas.read_json(tmp_path / "p.jsonl", lines=True)["video"]) == expected
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert sorted(pyarrow.csv.read_csv(tmp_path / "p.csv", parse_options=options)["video"].to_pylist()) == expected
    assert sorted(pq.read_table(tmp_path / "p.parquet")["video"].to_pylist()) == expected
