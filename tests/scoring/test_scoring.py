"""Scoring gives one row per video, for all kinds of videos and output formats."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import Data
from ssv2rt.engines.base import Outputs
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.discover import Shard, discover
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.row import Row, columns
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.writers import check_output, open_writer
from tests.conftest import numbered_video


def score(bundle: Bundle, videos: list[Path] | list[Video], top_k: int = 3, threads: int = 2) -> list[Row]:
    """The rows as they are written to an output."""
    scorer = Scorer(Predictor(bundle, top_k=top_k), data=Data(threads=threads), clip=bundle.info.clip)
    tasks = list(enumerate(video if isinstance(video, Video) else Video(str(video), video) for video in videos))
    batches = [tasks[at : at + scorer.videos] for at in range(0, len(tasks), scorer.videos)]
    rows = [row for batch in scorer.score(batches) for _, row in batch]
    return [{name: value for name, value in row.items() if name != "path"} for row in rows]


@pytest.fixture(scope="module")
def videos(tiny_set: Path) -> list[Path]:
    return sorted((tiny_set / "videos").iterdir())[:11]


def test_one_row_per_video_in_order(tiny_bundle: Bundle, videos: list[Path]) -> None:
    rows = score(tiny_bundle, videos)
    assert [row["video"] for row in rows] == [str(path) for path in videos]
    for row in rows:
        assert row["status"] == "ok" and 10 <= row["frames"] <= 14
        assert {row["label"], row["label_2"], row["label_3"]} <= set(tiny_bundle.info.labels)
        assert 1 >= row["probability"] >= row["probability_2"] >= row["probability_3"] >= 0


def test_broken_videos_get_error_rows_and_change_no_others(
    tiny_bundle: Bundle, videos: list[Path], tmp_path: Path
) -> None:
    alone = {row["video"]: row for row in score(tiny_bundle, videos)}
    data = videos[0].read_bytes()
    broken = {
        "empty.webm": (b"", "error: empty file"),
        "text.mp4": (b"not a video\n" * 50, "error: unreadable"),
        "half.webm": (data[: len(data) // 2], "error: truncated"),
        "header.webm": (data[:300], "error: truncated"),
    }
    mixed = list(videos)
    for number, (name, (content, _)) in enumerate(broken.items()):
        (tmp_path / name).write_bytes(content)
        mixed.insert(3 * number, tmp_path / name)
    (tmp_path / "folder.webm").mkdir()
    mixed += [tmp_path / "folder.webm", tmp_path / "gone.webm"]
    rows = {row["video"]: row for row in score(tiny_bundle, mixed)}
    assert list(rows) == [str(path) for path in mixed]
    for name, (_, status) in broken.items():
        assert rows[str(tmp_path / name)] == {"video": str(tmp_path / name), "status": status}
    assert rows[str(tmp_path / "folder.webm")]["status"] == "error: unreadable"
    assert rows[str(tmp_path / "gone.webm")]["status"] == "error: missing"
    assert all(rows[name] == row for name, row in alone.items())  # bit-identical


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_special_files_and_names(tiny_bundle: Bundle, videos: list[Path], tmp_path: Path, suffix: str) -> None:
    place = tmp_path / "in"
    place.mkdir()
    os.mkfifo(place / "pipe.webm")
    os.symlink(place / "nowhere", place / "broken.webm")
    names = [
        b"a,b.webm",
        b'"q".webm',
        b"two\nlines.webm",
        "🎥.webm".encode(),
        b"cr\rx.webm",
        b"\xff\xfe.webm",
        b"-dash.webm",
    ]
    for name in names:
        shutil.copy(videos[0], os.fsencode(place) + b"/" + name)
    out = tmp_path / f"p{suffix}"
    with open_writer(out, columns(1)) as sink:
        sink.write(score(tiny_bundle, list(discover([str(place)])), top_k=1, threads=1))
    read: dict[str, Callable[[], list[Row]]] = {
        ".csv": lambda: list(csv.DictReader(out.open(newline="", encoding="utf-8"))),
        ".jsonl": lambda: [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line],
        ".parquet": lambda: pq.read_table(out).to_pylist(),
    }
    status = {Path(row["video"]).name: row["status"] for row in read[suffix]()}
    expected = {name.decode(errors="backslashreplace"): "ok" for name in names}
    assert status == expected | {"pipe.webm": "error: unreadable", "broken.webm": "error: missing"}


def test_scores_do_not_depend_on_the_number_of_videos(tiny_bundle: Bundle, videos: list[Path]) -> None:
    together = score(tiny_bundle, videos)
    assert [score(tiny_bundle, [path])[0] for path in videos[:3]] == together[:3]


def test_other_codecs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    paths = [
        numbered_video(tmp_path / "a.mp4", "libx264", frames=20),
        numbered_video(tmp_path / "b.avi", "mpeg4", frames=1),
        numbered_video(tmp_path / "c.mkv", "libvpx", frames=3, width=100, height=34),
    ]
    rows = score(tiny_bundle, paths)
    assert [(row["status"], row["frames"]) for row in rows] == [("ok", 20), ("ok", 1), ("ok", 3)]


def test_nan_logits_give_an_error_row(tiny_bundle: Bundle, videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(tiny_bundle, top_k=1)
    scorer = Scorer(predictor, data=Data(threads=1), clip=tiny_bundle.info.clip)
    start = predictor.runner.start

    def spoilt(clips: torch.Tensor) -> Callable[[], Outputs]:
        outputs = start(clips)()
        outputs.logits[1, 0] = float("nan")
        return lambda: outputs

    monkeypatch.setattr(predictor.runner, "start", spoilt)
    (rows,) = scorer.score([[(number, Video(str(path), path)) for number, path in enumerate(videos[:3])]])
    assert [row["status"] for _, row in rows] == ["ok", "error: not finite", "ok"]


ROWS: list[Row] = [
    {"video": 'a,b "c"\nd 🎥.webm', "status": "ok", "frames": 5, "label": "x", "probability": 0.5},
    {"video": "-bad.webm", "status": "error: truncated"},
]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_every_output_format_round_trips(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path / name, columns(1)) as sink:
        sink.write(ROWS[:1])
        sink.write(ROWS[1:])
        assert not (tmp_path / name).exists()
    path = tmp_path / name
    if name.endswith("csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found = [
                {k: float(v) if k in ("frames", "probability") else v for k, v in row.items() if v}
                for row in csv.DictReader(file)
            ]
    elif name.endswith("jsonl"):
        found = [{k: v for k, v in json.loads(line).items() if v is not None} for line in path.read_text().splitlines()]
    else:
        found = [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(path).to_pylist()]
    assert found == ROWS
    assert columns(1) == ["video", "status", "frames", "label", "probability"]


def test_an_interrupted_output_does_not_appear(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_writer(tmp_path / "p.csv", columns(1)) as sink:
            sink.write(ROWS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_invalid_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for out, says in [
        (tmp_path / "p.txt", "the extension '.txt' is no format; take .csv, .jsonl, .parquet"),
        (tmp_path / "there.csv", "exists; choose another name, or add --overwrite"),
        (tmp_path / "no" / "p.csv", "no folder"),
        (tmp_path / ("x" * 300 + ".csv"), "longer than 200 bytes"),
        (tmp_path, "the extension"),
    ]:
        with pytest.raises(UsageError, match=says):
            check_output(out, overwrite=False)
    check_output(tmp_path / "there.csv", overwrite=True)
    os.symlink("nowhere", tmp_path / "dangling.csv")
    with pytest.raises(UsageError, match="is not a file"):
        check_output(tmp_path / "dangling.csv", overwrite=True)


def test_folders_are_searched_by_extension_and_named_files_are_taken(tmp_path: Path) -> None:
    for name in ("b/2.webm", "b/1.MP4", "a.avi", "b/notes.txt", ".hidden.webm", ".git/x.webm", "odd.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    os.symlink(tmp_path / "a.avi", tmp_path / "again.avi")
    os.symlink("self.webm", tmp_path / "self.webm")
    names = [str(Path(video.name).relative_to(tmp_path)) for video in discover([str(tmp_path)])]
    assert names == ["a.avi", "self.webm", "b/1.MP4", "b/2.webm"]
    named_row = list(discover([str(tmp_path / "odd.bin"), str(tmp_path / "odd.bin"), str(tmp_path / ".hidden.webm")]))
    assert [Path(video.name).name for video in named_row] == ["odd.bin", ".hidden.webm"]


def test_patterns_lists_and_names_on_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.mp4", "b/c.mp4", "b/d e.webm", "b/two\nlines.webm"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [video.name for video in discover(["**/*.mp4", "b"])] == ["a.mp4", *names[1:]]
    (tmp_path / "list.txt").write_bytes(b"b/d e.webm\r\n\ngone.mp4\na.mp4")
    assert [video.name for video in discover(["@list.txt", "a.mp4"])] == ["b/d e.webm", "gone.mp4", "a.mp4"]
    for content in (b"\0".join(os.fsencode(name) for name in names) + b"\0", "\n".join(names[:3]).encode()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        found = [video.name for video in discover(["-"])]
        assert found == names[: len(found)] and len(found) >= 3
    with pytest.raises(UsageError, match=r"nothing fits '\*.avi'"):
        list(discover(["*.avi"]))
    with pytest.raises(UsageError, match="no file or folder '@gone.txt'"):
        list(discover(["@gone.txt"]))


def test_shards_are_disjoint_and_complete(tmp_path: Path) -> None:
    names = [f"clips/{number}.webm" for number in range(500)]
    shares = [[name for name in names if name in Shard(index, 3)] for index in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert all(100 < len(share) < 230 for share in shares)
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3", "1/0"):
        with pytest.raises(UsageError, match="like 3/16"):
            Shard.parse(wrong)
    assert Shard.parse("3/16") == Shard(3, 16)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder_gets_a_row(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "a.webm").touch()
    assert [Path(video.name).name for video in discover([str(tmp_path)])] == ["a.webm", "shut"]


def test_no_videos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        list(discover([str(tmp_path / "no")]))
    for name in ("", "x" * 300):
        with pytest.raises(UsageError, match="no file or folder"):
            list(discover([name]))
    with pytest.raises(UserError, match="no videos in"):
        list(discover([str(tmp_path)]))


def test_real_videos(tiny_bundle: Bundle, real_videos: Path, tmp_path: Path) -> None:
    rows = score(tiny_bundle, list(discover([str(real_videos)])))
    assert len(rows) == 6 and {row["status"] for row in rows} == {"ok"}
