"""Merging the outputs of shards."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.merge import merge, read_output
from ssv2rt.scoring.row import columns
from ssv2rt.scoring.writers import open_writer
from tests.cli import ssv2rt


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_merged_shards_equal_one_run(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, suffix: str) -> None:
    inputs = tiny_set / "videos"
    shared = ("score", inputs, "--engine", tiny_bundle.path, "--sort", "--top-k", 2, "--logits", "--json")
    whole = ssv2rt(*shared, "--out", f"whole.{suffix}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    counts = []
    for shard in ("1/2", "2/2"):
        out = f"{shard[0]}.{suffix}"
        part = ssv2rt(*shared, "--out", out, "--shard", shard, cwd=tmp_path)
        counts.append(json.loads(part.stdout)["videos"])
    assert sum(counts) == 80 and all(counts)
    parts = [f"1.{suffix}", f"2.{suffix}"]
    done = ssv2rt("merge", *parts, "--out", f"all.{suffix}", "--expect", inputs, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"out": ""} == {"out": "", "videos": 80, "errors": 0, "doubled": 0, "missing": 0}
    if suffix == "parquet":
        assert pq.read_table(tmp_path / "all.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    else:
        assert (tmp_path / f"all.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    half = ssv2rt("merge", parts[0], parts[0], "--out", f"half.{suffix}", "--expect", inputs, "--json", cwd=tmp_path)
    facts = json.loads(half.stdout)
    assert half.returncode == 1 and (facts["doubled"], facts["missing"]) == (counts[0], counts[1])
    assert "in several parts: " in half.stderr and "in no part: " in half.stderr


def test_merge_prefers_ok_rows_among_duplicates(tmp_path: Path) -> None:
    good = {"video": "a.webm", "status": "ok", "frames": 3, "label": "x", "probability": 0.5}
    for name, row in (("bad", {"video": "a.webm", "status": "error: timeout"}), ("good", good)):
        with open_writer(tmp_path / f"{name}.csv", columns(1)) as sink:
            sink.write([row])
    for order in (("bad", "good"), ("good", "bad")):
        merged = merge([tmp_path / f"{name}.csv" for name in order], tmp_path / "out.csv")
        assert (merged.videos, merged.errors, merged.duplicates) == (1, 0, 1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_merge_keeps_all_windows_of_a_long_video(tmp_path: Path, suffix: str) -> None:
    starts = [round(number * 0.01, 6) for number in range(8_000_000, 8_000_300)]
    with open_writer(tmp_path / f"a.{suffix}", columns(1, windows=True)) as sink:
        for start in starts:
            row = {"video": "a.webm", "status": "ok", "label": "x", "probability": 0.5}
            sink.write([row | {"start": start, "end": start + 1 / 3}])
    merged = merge([tmp_path / f"a.{suffix}"], tmp_path / "out.csv")
    assert merged.duplicates == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [float(line.split(",")[2]) for line in lines[1:]] == starts and lines[3].startswith(
        "a.webm,ok,80000.02,80000.353333,"
    )


def test_truncated_or_altered_part_is_refused(tmp_path: Path) -> None:
    row = {"video": "a.webm", "status": "ok", "frames": 3, "label": "x", "probability": 0.25}
    for suffix in ("csv", "jsonl"):
        with open_writer(tmp_path / f"whole.{suffix}", columns(1)) as sink:
            sink.write([row, row | {"video": "b.webm"}])
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for cut in range(1, len(whole) - 1):
            if (
                whole[cut - 1 : cut] != b"\n" and whole[cut : cut + 1] != b"\n"
            ):  # truncation between two lines cannot be detected
                (tmp_path / f"cut.{suffix}").write_bytes(whole[:cut])
                with pytest.raises(UserError, match=r"is not an output of|cannot read"):
                    merge([tmp_path / f"cut.{suffix}"], tmp_path / "out.csv")
    for name, content in (
        ("short.csv", "video,status\na.webm\n"),
        ("long.csv", "video,status\na.webm,ok,1\n"),
        ("number.jsonl", '{"video": 1, "status": "ok"}\n'),
        ("text.jsonl", '{"video": "a", "status": "error: x", "frames": "x"}\n'),
        ("lacks.jsonl", '{"video": "a", "status": "error: x"}\n{"video": "b"}\n'),
        ("more.jsonl", '{"video": "a", "status": "error: x"}\n{"video": "b", "status": "error: x", "frames": 1}\n'),
        ("no-label.csv", "video,status,label,probability\na.webm,ok,,0.5\n"),
        ("no-probability.csv", "video,status,label\na.webm,ok,x\n"),
        ("no-end.csv", "video,status,start,end,label,probability\na.webm,ok,0.5,,x,0.5\n"),
        ("not-finite.csv", "video,status,label,probability\na.webm,ok,x,nan\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="cannot read"):
            merge([tmp_path / name], tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out.*"))


def test_what_pandas_and_spreadsheets_have_written_again_is_read(tmp_path: Path) -> None:
    text = "video,status,frames,label,probability\na.webm,ok,28.0,x,0.5\nb.webm,error: corrupt,,,\n"
    (tmp_path / "a.csv").write_text(text, "utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"video":"a.webm","status":"ok","frames":28.0,"label":"x","probability":1}\n')
    for name in ("a.csv", "b.jsonl"):
        _, rows = read_output(tmp_path / name)
        assert repr(next(rows)["frames"]) == "28"


def test_missing_expected_videos_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,status\n")
    done = ssv2rt("merge", "a.csv", "--out", "out.csv", "--expect", "gone", cwd=tmp_path)
    assert done.returncode == 2 and "no file or folder 'gone'" in done.stderr and not (tmp_path / "out.csv").exists()


def test_merge_refuses_files_that_are_not_outputs(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.csv", columns(1)) as sink:
        sink.write([])
    with open_writer(tmp_path / "b.csv", columns(2)) as sink:
        sink.write([])
    with pytest.raises(UserError, match="has other columns than"):
        merge([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out.csv")
    for name, content in (("c.csv", b"x,y\n1,2\n"), ("d.parquet", b"junk"), ("e.jsonl", b"{"), ("f.csv", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"is not an output of|cannot read"):
            merge([tmp_path / name], tmp_path / "out.csv")
