"""Reports: what they say, names and labels that look like HTML, and how they behave in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssv2rt.report.plots import of_epochs
from tests import cli

NASTY = [
    "</script><script>boom()</script>",
    '"><img src=x onerror=boom()>',
    "\u202egnp.exe",
    "a & b < c",
    "ünïcode 漢字",
]


def content(page: Path) -> dict[str, Any]:
    """The JSON in a page."""
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found and len(text) < 25_000_000
    return json.loads(found[1])  # type: ignore[no-any-return]


def sections(page: Path) -> dict[str, dict[str, Any]]:
    return {section["title"]: section for section in content(page)["sections"]}


@pytest.fixture(scope="module")
def pages(tiny_run, tiny_bundle, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A folder with run.html, engine.html, predictions.html, windows.html and what they are about."""
    folder = tmp_path_factory.mktemp("pages")
    videos = folder / "videos"
    shutil.copytree(tiny_set / "videos", videos)
    (videos / NASTY[1].replace("/", "")).with_suffix(".webm").write_bytes(next(videos.iterdir()).read_bytes())
    (videos / "broken.webm").write_bytes(b"no video")
    done = cli.ssv2rt("score", videos, "--engine", tiny_bundle.path, "--out", folder / "preds.csv")
    assert done.returncode == 3
    one = min(videos.iterdir())
    arguments = ["score", one, videos / "broken.webm", "--engine", tiny_bundle.path, "--window", "0.4"]
    assert cli.ssv2rt(*arguments, "--out", folder / "windows.csv").returncode == 3
    for arguments in (
        [tiny_run.path, "--explain", "3", "--clips", "6", "--out", "run.html"],
        [tiny_bundle.path, "--clips", "6", "--out", "engine.html"],
        ["preds.csv", "--out", "predictions.html"],
        ["windows.csv", "--out", "windows.html"],
    ):
        done = cli.ssv2rt("report", *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_run_is_reported(pages: Path) -> None:
    found = sections(pages / "run.html")
    assert dict(found["Result"]["rows"])["network"] == "resnet3d18"
    assert [chart["title"] for chart in found["Curves"]["charts"]][:2] == ["Loss", "Accuracy"]
    assert sum(map(sum, found["Confusion matrix"]["matrix"])) == 10
    clips = found["Clips"]["clips"]
    assert len(clips) == 6 and [clip["strip"]["heat"] is not None for clip in clips] == [True] * 3 + [False] * 3
    kinds = [clip["kind"] for clip in clips]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) <= {"wrong", "right"}
    wrong = [clip["top"][0][1] for clip in clips if clip["kind"] == "wrong"]
    assert wrong == sorted(wrong, reverse=True)
    assert "temporal_strides" in found["Recipe"]["text"]
    assert found["Problems of the data"]["note"] == "0 clips are unusable or suspicious."


def test_an_engine_is_reported(pages: Path) -> None:
    found = sections(pages / "engine.html")
    assert dict(found["Engine"]["rows"])["precision"] == "fp16"
    compared = dict(found["Comparison when it was built"]["rows"])
    assert compared["clips"] == "10" and compared["agreement"].endswith("%")
    layers = found["Layers"]["rows"]
    assert layers[0][:3] == ["stem.0", "Conv", "fp16"] and sum(row[5] or 0 for row in layers) == pytest.approx(1)
    assert "of 6 validation clips" in found["Clips on which engine and network disagree"]["note"]


def test_predictions_are_reported_with_errors_and_hostile_names(pages: Path) -> None:
    found = sections(pages / "predictions.html")
    assert dict(found["Result"]["rows"]) | {"rows": "82", "errors": "1"} == dict(found["Result"]["rows"])
    assert sum(row[1] for row in found["Predicted classes"]["rows"]) == 81
    assert found["Errors by reason"]["rows"][0][:2] == ["unreadable", 1]
    clips = found["Videos"]["clips"]
    assert sum(clip["strip"] is not None for clip in clips) == 81
    assert any("onerror=boom()" in clip["video"] for clip in clips)
    assert "<script>boom" not in (pages / "predictions.html").read_text()


def test_windows_are_reported_as_a_timeline(pages: Path) -> None:
    good, bad = sections(pages / "windows.html")["Windows"]["videos"]
    assert len(good["windows"]) > 2 and good["moments"][0]["strip"] and all(name["ok"] for name in good["names"])
    for (_, drawn, *_), (start, *_) in pairwise(good["windows"]):
        assert drawn == start
    assert bad["names"] == [{"name": "error: unreadable", "ok": False}] and not bad["moments"]


def test_of_many_windows_evenly_spaced_ones_are_drawn(tmp_path: Path) -> None:
    lines = ["video,status,frames,start,end,label,probability"]
    for video in range(60):
        for start in range(5000 if video < 2 else 3):
            label = "a" if start < 2000 else "b"
            lines.append(f"/gone/{video}.mp4,ok,30,{start}.0,{start + 2}.0,{label},0.5")
    (tmp_path / "many.csv").write_text("\n".join([*lines, "/gone/59.mp4,error: corrupt,,,,,", ""]))
    done = cli.ssv2rt("report", "many.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sections(tmp_path / "report.html")
    assert dict(found["Result"]["rows"])["rows"] == "10,175"
    videos, note = found["Windows"]["videos"], found["Windows"]["note"]
    assert "Of 2 videos with more than 1000 windows" in note and "The first 50 videos are shown, and 10 others" in note
    windows = videos[0]["windows"]
    assert 500 <= len(windows) <= 1000 and len(videos[2]["windows"]) == 3
    for (_, drawn, *_), (start, *_) in pairwise(windows):
        assert drawn == start
    assert next(start for start, _, _, name, _ in windows if videos[0]["names"][name]["name"] == "b") == 2000
    moments = [moment["start"] for moment in videos[0]["moments"]]
    assert len(moments) == 6 and moments[0] == 0 and moments[-1] > 4980


def test_of_many_rows_all_are_counted_and_some_are_shown(tmp_path: Path) -> None:
    rows = 5000
    with (tmp_path / "many.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "status", "frames", "expected", "label", "probability"])
        for number in range(rows):
            label, right = NASTY[number % len(NASTY)], number % 10 != 0
            writer.writerow([f"/gone/{number}.mp4", "ok", 30, label if right else "other", label, number / rows])
        for number in range(4):
            writer.writerow(["/gone/bad.mp4", "error: corrupt", "", label if number else "", "", ""])
    done = cli.ssv2rt("report", "many.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sections(tmp_path / "report.html")
    top1 = "89.95% of 5,003 labeled videos; 3 of them have error rows, which count as wrong"
    assert dict(found["Result"]["rows"])["top-1"] == top1
    assert found["Errors by reason"]["rows"] == [["corrupt", 4, "/gone/bad.mp4"]]
    assert {row[0]: row[1] for row in found["Predicted classes"]["rows"]} == dict.fromkeys(NASTY, 1000)
    clips = found["Videos"]["clips"]
    assert len(clips) == 504
    assert [clip["video"] for clip in clips[:2]] == ["/gone/4990.mp4", "/gone/4980.mp4"]  # the most confident mistakes
    note = found["Videos"]["note"]
    assert note.startswith(
        "500 of 5,000 scored videos: 250 mistakes, the most confident first; then 250 others, chosen by"
    )
    assert "500 videos are not where the file names them any more" in note
    assert all(text not in (tmp_path / "report.html").read_text() for text in NASTY[:2])
    # Where nearly all are mistakes, these fill the page. Labels that are no classes do not count.
    rows = "".join(f"/gone/{number}.mp4,ok,30,{'x' if number else 'y'},y,0.5\n" for number in range(40))
    (tmp_path / "few.csv").write_text(f"video,status,frames,expected,label,probability\n{rows}")
    for clips, shown in ((30, 30), (50, 40), (1, 1)):
        assert cli.ssv2rt("report", "few.csv", "--clips", clips, cwd=tmp_path).returncode == 0
        assert len(sections(tmp_path / "report.html")["Videos"]["clips"]) == shown
    metadata = {"weights_sha256": "w", "labels": ["y"], "clip": {}, "windows": None, "engines": []}
    (tmp_path / "few.csv.meta.json").write_text(json.dumps(metadata))
    assert cli.ssv2rt("report", "few.csv", cwd=tmp_path).returncode == 0
    assert dict(sections(tmp_path / "report.html")["Result"]["rows"])["top-1"] == "100.00% of 1 labeled videos"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.csv"], "no file 'gone.csv'"),
        (["gone"], "no run 'gone'"),
        (["x.csv", "--explain", "3"], "--explain is for a run"),
        (["x.csv"], "is not an output of `ssv2rt score`"),
        (["--out", "report.pdf"], "a report is a web page"),
        (["x.csv", "--clips", "501"], "Invalid value for '--clips'"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    done = cli.ssv2rt("report", *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.html"))


# ---- In a browser ----------------------------------------------------------------------------------------------------------


def open_page(browser: Any, page: Path, width: int = 1000) -> None:
    browser.set_window_size(width, 900)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []


def test_a_gallery_is_searched_filtered_and_sorted(pages: Path, browser: Any) -> None:
    from selenium.webdriver.support.select import Select

    open_page(browser, pages / "predictions.html")
    find = browser.find_elements
    assert browser.title == "Predictions preds.csv"
    told = find("css selector", "section .told")[0]
    cards = lambda: find("css selector", ".card")  # noqa: E731
    assert told.text == "82 of 82 videos" and len(cards()) == 48
    find("css selector", ".more")[0].click()
    assert len(cards()) == 82 and browser.switch_to.active_element == cards()[48]
    search = find("css selector", "input[type=search]")[0]
    search.send_keys("onerror")
    assert told.text == "1 of 82 videos" and "onerror=boom()" in cards()[0].text
    search.clear()
    search.send_keys(" ")
    kind, order = (Select(find("css selector", f"select[id$={name}]")[0]) for name in ("kind", "order"))
    kind.select_by_visible_text("error: unreadable")
    assert told.text == "1 of 82 videos" and "error: unreadable" in cards()[0].text
    kind.select_by_visible_text("all")
    order.select_by_visible_text("most probable first")
    values = [float(card.find_element("css selector", ".value").text.rstrip("%")) for card in cards()[:10]]
    assert values == sorted(values, reverse=True)
    head = find("css selector", "th button")[1]
    head.click()
    counts = [
        int(cell.text) for cell in find("css selector", "tbody")[0].find_elements("css selector", "td:nth-child(2)")
    ]
    assert counts == sorted(counts)
    assert browser.get_log("browser") == []
    assert not browser.execute_script(
        "return typeof boom !== 'undefined' || document.querySelector('img[src=x]') !== null"
    )


def test_a_timeline_is_used_by_keyboard_and_pointer(pages: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages / "windows.html")
    line, told = (browser.find_element("css selector", f".video {name}") for name in (".line", ".told"))
    line.send_keys(Keys.ARROW_RIGHT)
    assert line.get_attribute("aria-valuenow") == "2"
    second = told.text
    assert re.match(r"0\.2 s to 0\.6 s: .*, \d+\.\d%", second) and line.get_attribute("aria-valuetext") == second
    line.send_keys(Keys.END)
    assert line.get_attribute("aria-valuenow") == line.get_attribute("aria-valuemax") and told.text != second
    ActionChains(browser).move_to_element_with_offset(line, 1 - line.size["width"] // 2, 0).perform()
    assert told.text.startswith("0 s to 0.4 s")
    assert browser.get_log("browser") == []


def test_names_that_turn_around_are_seen_and_long_ones_fit(tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.support.select import Select

    rows = [["a\u202egnp.mp4", "ok", "3", "up\u202e" + "w" * 300, "0.5"], ["b.mp4", "error: \u202ebad", "", "", ""]]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "status", "frames", "label", "probability"], *rows])
    assert cli.ssv2rt("report", "p.csv", cwd=tmp_path).returncode == 0
    open_page(browser, tmp_path / "report.html", width=500)
    card = browser.find_element("css selector", ".card")
    assert "a\\u202egnp.mp4" in card.text and "up\\u202ewww" in card.text
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    Select(browser.find_element("css selector", "select[id$=kind]")).select_by_index(2)
    assert browser.find_element("css selector", "section .told").text == "1 of 2 videos"


@pytest.mark.parametrize("name", ["run", "engine", "windows"])
def test_pages_open_without_errors_and_fit_a_narrow_screen(pages: Path, browser: Any, name: str) -> None:
    open_page(browser, pages / f"{name}.html", width=500)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.find_elements("css selector", "main section")
    # Everything that can be clicked is reached by the keyboard and has a name.
    unnamed = (
        "return [...document.querySelectorAll('button, a, canvas, select, input')]"
        ".filter(e => !(e.ariaLabel || e.textContent || (e.labels && e.labels.length))).length"
    )
    assert browser.execute_script(unnamed) == 0
    assert browser.get_log("browser") == []


def test_the_confusion_matrix_and_films_are_used_by_keyboard(pages: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages / "run.html")
    matrix = browser.find_element("css selector", "canvas")
    browser.execute_script("arguments[0].focus()", matrix)
    told = browser.find_element("xpath", "//canvas/../following-sibling::p[@class='told']")
    assert re.match(r"\d+ of \d+ clips \(.*\) of “.*” are predicted as “.*”.", first := told.text)
    matrix.send_keys(Keys.ARROW_RIGHT)
    assert told.text.split(" of “")[1].split("”")[0] in first and told.text != first
    film = browser.find_element("css selector", "button.film")
    film.send_keys(Keys.ENTER)
    assert film.get_attribute("aria-pressed") == "true"


def test_lines_of_the_metrics_that_lack_figures_are_left_out() -> None:
    whole = {"epoch": 1, "train_loss": 1.0, "train_top1": 9.0, "validation": {"top1": 9.0, "top5": 9.0, "loss": 1.0}}
    lacking = [{key: value for key, value in whole.items() if key != name} for name in ("train_top1", "validation")]
    assert of_epochs([*lacking, whole, whole | {"validation": {"top1": 9.0, "loss": 1.0}}]) == [whole]


def test_evaluate_and_train_write_reports_of_what_they_did(tiny_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The report of an evaluation has its split, views and figures, and not those of the run's validation."""
    done = cli.ssv2rt(
        *("evaluate", tiny_run.path, "--split", "test", "--views", "2x1", "--checkpoint", "last"),
        *("--report", tmp_path / "e.html", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found, figures = sections(tmp_path / "e.html"), json.loads(done.stdout)
    facts = dict(found["Result"]["rows"])
    clips = found["Clips"]["clips"]
    assert facts["test clips"] == str(len(clips)) and facts["top-1"] == f"{figures['top1']:.2f}%"
    right = sum(clip["kind"] == "right" for clip in clips)
    assert right / len(clips) == pytest.approx(figures["top1"] / 100, abs=0.5 / len(clips) + 0.01)
    assert sum(map(sum, found["Confusion matrix"]["matrix"])) == len(clips)
    # A finished run has nothing left to train, and has its report.
    done = cli.ssv2rt("train", "--resume", tiny_run.path, "--report", tmp_path / "t.html")
    assert done.returncode == 0 and "validation clips" in dict(sections(tmp_path / "t.html")["Result"]["rows"]), (
        done.stderr
    )


@pytest.mark.parametrize("name", ["report.txt", "no/report.html", "folder.html"])
def test_names_that_no_report_can_have_stop_before_anything_runs(tiny_run, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "folder.html").mkdir()
    for call in (("evaluate", tiny_run.path), ("train", "--resume", tiny_run.path), ("report", tiny_run.path)):
        done = cli.ssv2rt(*call, "--out" if call[0] == "report" else "--report", tmp_path / name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    done = cli.ssv2rt("train", "--resume", tiny_run.path, "--dry-run", "--report", tmp_path / "r.html")
    assert done.returncode == 2 and "--dry-run" in done.stderr


def test_preview_tells_and_explains_predictions(tiny_run: Any, tiny_set: Path, tmp_path: Path) -> None:
    shapes = []
    for words in (["--explain", tiny_run.path], ["--recipe", tiny_run.recipe_file]):
        done = cli.ssv2rt("preview", tiny_set, "--split", "validation", "--clips", "2", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shapes.append(np.asarray(Image.open(tmp_path / "preview.png").convert("RGB")).astype(int))
    explained, plain = shapes
    assert explained.shape == plain.shape
    # The overlay is orange: where it is, there is more red and less blue.
    changed = np.abs(explained - plain).sum(-1) > 30
    assert changed.mean() > 0.02 and (explained - plain)[changed][:, 2].mean() < 0
    done = cli.ssv2rt("preview", tiny_set, "--explain", tiny_run.path, "--set", "clip.size=64", cwd=tmp_path)
    assert done.returncode == 2 and "leave out --recipe and --set" in done.stderr
