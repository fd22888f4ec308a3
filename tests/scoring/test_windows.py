"""Sliding windows have a row each; consecutive windows with the same label are merged into segments."""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.recipes import Data
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring import window_scorer as slider
from ssv2rt.scoring.journal import Journal, read_rows
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.row import Row, named_row
from ssv2rt.scoring.segments import Windows, segments
from ssv2rt.scoring.supervisor import Supervisor
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.window_scorer import WindowScorer
from ssv2rt.video.sliding_window import TimeWindow, slide
from tests.cli import ssv2rt
from tests.conftest import numbered_video

WINDOWS = Windows(2.0, 1.0)


def rows_of(bundle: Bundle, videos: list[Path], windows: Windows = WINDOWS, threads: int = 2) -> list[Row]:
    slider = WindowScorer(
        Predictor(bundle, top_k=2), data=Data(threads=threads), clip=bundle.info.clip, windows=windows
    )
    batches = [[(number, Video(str(path), path))] for number, path in enumerate(videos)]
    return [row for part in slider.score(batches) for _, row in part]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of 10, 1 and 5 seconds at 12 frames per second."""
    folder = tmp_path_factory.mktemp("long")
    return [
        numbered_video(folder / "a.webm", "libvpx-vp9", frames=120),
        numbered_video(folder / "b.mp4", "libx264", frames=12),
        numbered_video(folder / "c.avi", "mpeg4", frames=60),
    ]


def test_one_row_per_window(tiny_bundle: Bundle, videos: list[Path]) -> None:
    rows = rows_of(tiny_bundle, videos)
    times = {
        path: [(row["start"], row["end"], row["frames"]) for row in rows if row["path"] == str(path)] for path in videos
    }
    assert times[videos[0]] == [(start, start + 2, 24) for start in range(9)]
    assert times[videos[1]] == [(0, 1, 12)]
    assert times[videos[2]] == [(start, start + 2, 24) for start in range(4)]
    assert [row["path"] for row in rows if row["last"]] == [str(path) for path in videos]


def test_rows_match_the_engine_on_each_window(tiny_bundle: Bundle, videos: list[Path]) -> None:
    import torch

    predictor = Predictor(tiny_bundle, top_k=2)
    clips = [window.clips for window in slide(videos[0], tiny_bundle.info.clip, window=2.0, hop=1.0)]
    expected = [predictor.start(torch.from_numpy(clip), 1)()[0] for clip in clips]
    rows = rows_of(tiny_bundle, videos)[: len(clips)]
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert rows_of(tiny_bundle, videos[:1], threads=8) == rows


def test_heartbeat_while_windows_are_slow(
    tiny_bundle: Bundle, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats are yielded while a batch of windows is decoded."""

    def slowly(*arguments: Any, **options: Any) -> Iterator[TimeWindow]:
        for window in slide(*arguments, **options):
            time.sleep(0.1)
            yield window

    monkeypatch.setattr(slider, "slide", slowly)
    monkeypatch.setattr(slider, "_HEARTBEAT_INTERVAL", 0.3)
    made = WindowScorer(
        Predictor(tiny_bundle, top_k=1), data=Data(threads=2), clip=tiny_bundle.info.clip, windows=WINDOWS
    )
    parts = list(made.score([[(0, Video(str(videos[0]), videos[0]))]]))
    assert [] in parts[: [bool(part) for part in parts].index(True)] and sum(map(len, parts)) == 9


def test_truncated_video_gets_its_windows_and_an_error_row(
    tiny_bundle: Bundle, videos: list[Path], tmp_path: Path
) -> None:
    content = videos[0].read_bytes()
    (tmp_path / "half.webm").write_bytes(content[: len(content) // 2])
    (tmp_path / "junk.webm").write_bytes(b"junk")
    whole = rows_of(tiny_bundle, videos[:1])
    rows = rows_of(tiny_bundle, [tmp_path / "half.webm", tmp_path / "junk.webm", videos[1]])
    half = [row for row in rows if row["video"].endswith("half.webm")]
    assert [row["status"] for row in half] == ["ok"] * (len(half) - 1) + ["error: truncated"]
    assert 2 <= len(half) <= len(whole) and half[-1]["start"] == len(half) - 1 and half[-1]["last"]
    for ours, theirs in zip(half[:-1], whole, strict=False):
        assert ours["probability"] == theirs["probability"] and ours["label"] == theirs["label"]
    junk = [row for row in rows if row["video"].endswith("junk.webm")]
    assert [(row["status"], row["start"], row["last"]) for row in junk] == [("error: unreadable", 0, True)]


def test_the_command_writes_windows_and_segments(tiny_bundle: Bundle, videos: list[Path], tmp_path: Path) -> None:
    shared = ("score", *videos, "--engine", tiny_bundle.path, "--sort", "--window", 2, "--hop", 1)
    assert ssv2rt(*shared, "--out", "w.csv", cwd=tmp_path).returncode == 0
    rows = list(csv.DictReader((tmp_path / "w.csv").open(newline="")))
    assert list(rows[0])[:6] == ["video", "status", "start", "end", "frames", "label"] and len(rows) == 14
    done = ssv2rt(*shared, "--merge", "--out", "s.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    joined = list(csv.DictReader((tmp_path / "s.csv").open(newline="")))
    assert list(joined[0]) == ["video", "status", "start", "end", "windows", "label", "probability"]
    assert sum(int(row["windows"]) for row in joined) == 14
    for before, after in pairwise(joined):
        if before["video"] == after["video"]:
            assert before["end"] == after["start"] and before["label"] != after["label"]
    for wrong, said in (
        (("--hop", 1), "go with --window"),
        (("--window", 0), "--window 0: give seconds"),
        (("--window", 2, "--hop", 0), "--hop 0: give seconds"),
        (("--window", "nan"), "--window nan: give seconds"),
        (("--window", 2, "--hop", 3, "--merge"), "leaves gaps between windows"),
        (("--window", 2, "--merge", "--top-k", 2), "leaves one label"),
    ):
        done = ssv2rt("score", *videos, "--engine", tiny_bundle.path, "--out", "x.csv", *wrong, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_shortest_window_has_a_valid_default_hop() -> None:
    assert Windows.of(0.01, None, False).hop == 0.01 and Windows.of(3.0, None, False).hop == 1.5


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc")), max_size=40), st.integers(1, 4))
def test_segments_cover_each_video_without_overlap(windows: list[tuple[int, str]], overlap: int) -> None:
    """Each moment that a window covers is in exactly one segment, also if windows of several videos are interleaved."""
    rows: list[Row] = []
    counts = [sum(video == number for video, _ in windows) for number in range(3)]
    at = [0, 0, 0]
    for video, label in windows:
        start = float(at[video])
        at[video] += 1
        facts = {
            "status": "ok",
            "start": start,
            "end": start + overlap,
            "label": label,
            "probability": 0.5,
            "window": at[video] - 1,
        }
        rows.append(named_row(f"{video}", facts | {"last": at[video] == counts[video]}))
    made = list(segments(iter(rows)))
    for video in range(3):
        labels = [label for other, label in windows if other == video]
        mine = [row for row in made if row["path"] == str(video)]
        runs = [label for number, label in enumerate(labels) if number == 0 or labels[number - 1] != label]
        assert [row["label"] for row in mine] == runs and sum(row["windows"] for row in mine) == len(labels)
        edges = [edge for row in mine for edge in (row["start"], row["end"])]
        assert edges == sorted(edges) and edges[1:-1:2] == edges[2::2]
        if mine:
            assert (edges[0], edges[-1]) == (0.0, len(labels) - 1 + overlap)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_journal_skips_repeated_windows(
    tmp_path_factory: pytest.TempPathFactory, videos: list[int], data: st.DataObject
) -> None:
    """Videos that are restarted after a crash, or resumed, have each window once."""
    path = tmp_path_factory.mktemp("j") / "j"
    journal = Journal(path, {}, resume=False, windows=True)
    for video, count in enumerate(videos):
        row = {"status": "ok", "start": 0.0, "end": 1.0, "label": "a", "probability": 0.5}
        for _ in range(data.draw(st.integers(0, 3))):
            until = data.draw(st.integers(0, count - 1))
            journal.write([named_row(str(video), row | {"window": n, "last": False}) for n in range(until)])
            if data.draw(st.booleans()):
                journal.close()
                journal = Journal(path, {}, resume=True, windows=True)
        journal.write([named_row(str(video), row | {"window": n, "last": n == count - 1}) for n in range(count)])
    journal.close()
    found = [(row["path"], row["window"]) for row in read_rows(path)]
    assert found == [(str(video), n) for video, count in enumerate(videos) for n in range(count)]
    assert Journal(path, {}, resume=True, windows=True).videos == len(videos)


def test_resume_after_a_kill_within_a_long_video(tiny_bundle: Bundle, tmp_path: Path) -> None:
    long = numbered_video(tmp_path / "long.webm", "libvpx-vp9", frames=3000, gop=50)
    shared = ["score", str(long), "--engine", str(tiny_bundle.path), "--window", "1", "--hop", "0.1"]
    assert ssv2rt(*shared, "--out", "whole.csv", cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "ssv2rt", *shared, "--out", str(tmp_path / "p.csv")]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    journal = tmp_path / "p.csv.journal"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (journal.is_file() and journal.read_bytes().count(b"\n") > 20):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 20 < journal.read_bytes().count(b"\n") < 2400, "it was killed within the video"
    done = ssv2rt(*shared, "--out", "p.csv", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_crash_of_the_decoder_loses_few_windows(tiny_bundle: Bundle, videos: list[Path], tmp_path: Path) -> None:
    """A video that crashed is tried again window by window, without waiting for a batch of them to be full."""
    bad = tmp_path / "abort.webm"
    shutil.copy(videos[0], bad)
    options = {"bundle": str(tiny_bundle.path), "top_k": 2, "clip": tiny_bundle.info.clip, "data": Data(threads=2)}
    settings = WorkerSettings("tests.scoring.doubles:aborting_in_windows", options | {"windows": WINDOWS})
    tasks = [(number, Video(str(path), path)) for number, path in enumerate([*videos, bad])]
    journal = Journal(tmp_path / "j", {}, windows=True)
    with contextlib.closing(journal), Supervisor([settings], timeout=60) as supervisor:
        for part in supervisor.score(tasks):
            journal.write([row for _, row in part])
    found = list(read_rows(tmp_path / "j"))
    expected = rows_of(tiny_bundle, videos)
    order = {str(video): place for place, video in enumerate(videos)}
    good = sorted(
        (row for row in found if row["path"] != str(bad)), key=lambda row: (order[row["path"]], row["window"])
    )
    # Rounding may differ: after the crash, other windows share a batch.
    assert len(good) == len(expected)
    assert all(row == pytest.approx(other, abs=1e-5) for row, other in zip(good, expected, strict=True))
    *scored, last = [row for row in found if row["path"] == str(bad)]
    assert last["status"] == "error: decoder crashed" and 3 <= len(scored) <= 7
    kept = ("window", "start", "end", "label", "probability")
    for row, other in zip(scored, expected, strict=False):
        assert {key: row[key] for key in kept} == pytest.approx({key: other[key] for key in kept}, abs=1e-5)
