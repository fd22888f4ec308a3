"""Videos with predictions drawn in: the files as other programs read them, and what is in the pictures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib import font_manager, get_data_path
from PIL import ImageFont

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.report import fonts
from ssv2rt.report.overlay import _wrapped, draw_overlays, overlay_name
from ssv2rt.report.plots import draw_confusion
from tests.cli import ssv2rt
from tests.conftest import corners, numbered_video


def predictions(path: Path, *rows: dict[str, object]) -> Path:
    """An output of scoring."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["video", "status", *[key for key in rows[0] if key not in ("video", "status")]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(video: Path | str, label: str = "Moving something up", probability: float = 0.5) -> dict[str, object]:
    return {"video": str(video), "status": "ok", "frames": 4, "label": label, "probability": probability}


def frames_of(path: Path) -> tuple[list[float], np.ndarray]:
    """Times in seconds, and RGB pictures."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.pts * frame.time_base) for frame in frames], np.stack(
            [frame.to_ndarray(format="rgb24") for frame in frames]
        )


def ffprobe(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("no ffprobe on this machine")
    (stream,) = json.loads(done.stdout)["streams"]
    return stream  # type: ignore[no-any-return]


def test_browsers_play_it_and_frames_keep_their_times(tmp_path: Path) -> None:
    source = numbered_video(tmp_path / "a.mp4", "libx264", frames=20, width=1284, height=722)
    assert draw_overlays(predictions(tmp_path / "p.csv", row(source)), tmp_path / "out").drawn == 1
    (path,) = (tmp_path / "out").iterdir()
    facts = ffprobe(path)
    assert (facts["codec_name"], facts["pix_fmt"], facts["width"], facts["height"]) == ("h264", "yuv420p", 640, 358)
    assert facts["color_space"] == "bt709" and int(facts["nb_frames"]) == 20
    assert float(facts["duration"]) == pytest.approx(20 / 12, abs=1e-4)
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    times, pictures = frames_of(path)
    assert times == pytest.approx([number / 12 for number in range(20)], abs=2e-6)
    # The upper part is as it was; below is a darker box with white text in it.
    for number, picture in enumerate(pictures):
        assert picture[:200].mean() == pytest.approx(20 + 7 * number, abs=3)
    box = pictures[19][-20:]
    assert box.min() < 0.6 * 153 and box.max() > 230


def test_a_browser_plays_it_from_any_place(tmp_path: Path, browser: Any) -> None:
    source = numbered_video(tmp_path / "a.webm", "libvpx-vp9", frames=20, width=160, height=120)
    draw_overlays(predictions(tmp_path / "p.csv", row(source)), tmp_path / "out")
    (path,) = (tmp_path / "out").iterdir()
    (tmp_path / "page.html").write_text(f"<video muted src='out/{path.name}'></video>")
    browser.get((tmp_path / "page.html").as_uri())
    browser.set_script_timeout(20)
    facts = browser.execute_async_script("""
        const done = arguments[0], video = document.querySelector('video');
        video.onerror = () => done([video.error.message]);
        video.onseeked = () => done([video.videoWidth, video.videoHeight, video.duration, video.currentTime]);
        const seek = () => { video.currentTime = 1; };
        video.readyState ? seek() : video.onloadedmetadata = seek;
    """)
    assert facts == [160, 120, pytest.approx(20 / 12, abs=0.01), 1]


def test_small_and_turned_videos(tmp_path: Path) -> None:
    source = corners(tmp_path / "a.mp4", 90)
    draw_overlays(predictions(tmp_path / "p.csv", row(source)), tmp_path / "out")
    _, pictures = frames_of(next((tmp_path / "out").iterdir()))
    assert pictures.shape == (4, 64, 48, 3)
    # Turned counter-clockwise, the right side is at the top.
    assert np.abs(pictures[0, 4, 4].astype(int) - (20, 220, 20)).max() < 20
    assert np.abs(pictures[0, 4, 43].astype(int) - 220).max() < 20


@pytest.mark.parametrize("end", [2.0, ""])  # a row without an end is of the rest of the video
def test_windows_are_drawn_along_the_time(tmp_path: Path, end: float | str) -> None:
    source = numbered_video(tmp_path / "a.mp4", "libx264", frames=24, width=160, height=120)
    windows = [
        row(source, label) | {"start": start, "end": start + 0.5}
        for start, label in ((0.0, "up"), (0.5, "down"), (1.0, "up"))
    ]
    failed = {"video": str(source), "status": "error: corrupt", "start": 1.5}
    draw_overlays(predictions(tmp_path / "p.csv", *windows, failed | {"end": end}), tmp_path / "out")
    _, pictures = frames_of(next((tmp_path / "out").iterdir()))
    bar = pictures[0, -2].astype(int)  # the cursor is at the left
    quarters = [bar[at] for at in (30, 60, 100, 140)]
    assert np.abs(quarters[0] - quarters[2]).max() < 12 < np.abs(quarters[0] - quarters[1]).max()
    assert quarters[3].max() < 40 < max(quarter.max() for quarter in quarters[:3])
    cursors = [int(picture[-2].sum(axis=1).argmax()) for picture in pictures]
    assert cursors == pytest.approx([160 * number / 24 for number in range(24)], abs=3)
    captions = pictures[:, -16:-4].astype(int)
    assert np.abs(captions[7] - captions[2] - 7 * 5 * 0.45).max() > 60  # another label
    assert np.abs(captions[14] - captions[13]).mean() < 12  # the same label
    assert np.abs(captions[20] - captions[16] - 7 * 4 * 0.45).max() > 60  # the error


def test_only_what_changed_is_drawn_again(tmp_path: Path) -> None:
    videos = [numbered_video(tmp_path / f"{name}.mp4", "libx264", frames=4) for name in "abc"]
    rows = [row(video) for video in videos]
    out = tmp_path / "out"
    assert draw_overlays(predictions(tmp_path / "p.csv", *rows), out).drawn == 3
    (out / overlay_name(str(videos[1]))).unlink()
    (out / overlay_name(str(videos[0]))).write_bytes(b"cut off")
    for name, age in (("killed", 7200), ("alive", 60)):
        (partial := out / f".{name}.mp4.abcdefgh.partial").touch()
        os.utime(partial, (time.time() - age,) * 2)
    before = {path: path.stat().st_mtime_ns for path in out.glob("c*")}
    done = draw_overlays(tmp_path / "p.csv", out)
    assert (done.drawn, done.kept) == (2, 1)
    assert len(list(out.glob("*.mp4"))) == 3 and [path.name[:7] for path in out.glob(".*")] == [".alive."]
    assert {path: path.stat().st_mtime_ns for path in out.glob("c*")} == before
    done = draw_overlays(predictions(tmp_path / "p.csv", *rows[:2], row(videos[2], "another label")), out)
    assert (done.drawn, done.kept) == (1, 2)


def test_what_has_no_overlay_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = numbered_video(tmp_path / "a.mp4", "libx264", frames=8)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    error = {"video": "b.mp4", "status": "error: corrupt", "frames": "", "label": "", "probability": ""}
    rows = (row(good), row(broken), row(tmp_path / "gone.mp4"), error)
    done = draw_overlays(predictions(tmp_path / "p.csv", *rows), tmp_path / "out")
    assert done.drawn == 1 and done.reasons == {"unreadable": 1, "missing": 1, "corrupt": 1}
    assert "3 videos have no overlay" in caplog.text and len(list((tmp_path / "out").iterdir())) == 1


def test_names_and_labels_of_any_kind(tmp_path: Path) -> None:
    names = ["ü <script>.mp4", "..hidden.mp4", "x" * 200 + ".mp4", "a/b.mp4", "c/b.mp4", "12:30.mp4"]
    assert overlay_name("a/b.mp4") != overlay_name("c/b.mp4")
    for name in names:
        found = overlay_name(name)
        assert len(found.encode()) < 250 and not found.startswith(".") and not set(found) & set('/<>:" \\')
    labels = ["漢字 \u202eabc 🙂", "a\nb\x00c", "w" * 500, "", " "]
    rows = []
    for name, label in zip(names, labels, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows.append(row(numbered_video(tmp_path / name, "libx264", frames=2, width=16, height=16), label))
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (tmp_path / "p.jsonl").write_text(lines)
    assert draw_overlays(tmp_path / "p.jsonl", tmp_path / "out").drawn == len(labels)


def test_the_expected_label_is_seen_below_a_long_one(tmp_path: Path) -> None:
    font = ImageFont.truetype(fonts.plain_font(), 12)
    for first in ("word " * 100, "w" * 500):
        lines = _wrapped(f"{first}\nexpected: up", 200, font, 3)
        assert lines[-1] == "expected: up" and lines[-2].endswith("…") and len(lines) <= 3
    assert _wrapped("a b", 200, font, 3) == ["a b"]
    assert len(_wrapped("word " * 100, 200, font, 3)) == 3


def test_letters_that_dejavu_lacks_are_drawn_by_another_font(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    stix = os.path.join(get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [stix, __file__])
    fonts._other_fonts.cache_clear()
    try:
        letter = chr(min(fonts.letters_of(stix) - fonts.letters_of(fonts.plain_font())))
        assert fonts.best_font(f"up {letter}") == stix
        assert fonts.best_font("up ü λ ж ع") == fonts.plain_font() and not caplog.text
        assert fonts.best_font("\U0010fffd") == fonts.plain_font()  # no font has it
        draw_confusion(np.eye(2, dtype=int), [f"up {letter}", "譯"], tmp_path / "figure", "title")
        assert 'id="STIXGeneral-Regular-' in (tmp_path / "figure.svg").read_text()
        assert caplog.text.count("has 1 of the letters in names, such as '譯'") == 1 and not recwarn.list
    finally:
        fonts._other_fonts.cache_clear()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = predictions(tmp_path / "p.csv", row(numbered_video(tmp_path / "a.mp4", "libx264", frames=2)))
    with pytest.raises(UserError, match="cannot write"):
        draw_overlays(file, file / "out")


def test_score_writes_a_report_and_overlays(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    videos = [str(path) for path in sorted((tiny_set / "videos").iterdir())[:2]]
    call = ["score", *videos, "--engine", str(tiny_bundle.path), "--out", "p.csv"]
    for arguments, said in (
        (["--report", "r.txt"], ".html"),
        (["--report", "no/r.html"], "no folder"),
        (["--overlay", videos[0]], "is not a folder"),
        (["--overlay", f"{videos[0]}/drawn"], "is not a folder"),
    ):
        done = ssv2rt(*call, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())
    more = ["--report", "r.html", "--overlay", "drawn"]
    done = ssv2rt(*call, *more, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["overlays drawn"] == 2 and (tmp_path / "r.html").is_file()
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".mp4"}
    (tmp_path / "r.html").unlink()
    done = ssv2rt(*call, *more, "--resume", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["overlays kept"] == 2 and (tmp_path / "r.html").is_file()
