"""Label Studio: predictions as tasks, and corrected labels as a data set."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.bundle import Bundle
from tests.cli import ssv2rt


def annotation(label: str, at: str = "2026-01-01T00:00:00Z", **facts: Any) -> dict[str, Any]:
    result = [{"type": "choices", "from_name": "label", "to_name": "video", "value": {"choices": [label]}}]
    return {"result": result, "was_cancelled": False, "created_at": at, "updated_at": at, **facts}


def exported(path: Path, *tasks: dict[str, Any]) -> Path:
    """Tasks as Label Studio exports them."""
    path.write_text(json.dumps([{"id": number, "predictions": [], **task} for number, task in enumerate(tasks)]))
    return path


@pytest.fixture(scope="module")
def scored(tiny_bundle: Bundle, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, preds.csv and preds.parquet of whole videos, and windows.jsonl."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "videos").mkdir()
    for video in sorted((tiny_set / "videos").iterdir())[:4]:
        shutil.copy(video, folder / "videos" / f"a b&{video.name}")
    (folder / "videos" / "broken.webm").write_bytes(b"no video")
    call = ("score", "videos", "--engine", tiny_bundle.path)
    assert ssv2rt(*call, "--out", "preds.csv", cwd=folder).returncode == 3
    assert ssv2rt("merge", "preds.csv", "--out", "preds.parquet", cwd=folder).returncode == 3
    assert ssv2rt(*call, "--window", "0.4", "--hop", "0.4", "--out", "windows.jsonl", cwd=folder).returncode == 3
    return folder


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_round_trip(scored: Path, tiny_bundle: Bundle, tmp_path: Path, suffix: str) -> None:
    done = ssv2rt(
        *("export", f"preds.{suffix}", "--to", "labelstudio", "--out", tmp_path / "tasks.json", "--json"), cwd=scored
    )
    assert done.returncode == 0 and "1 videos cannot be read" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["tasks"] == 4 and facts["left out"] == 1
    config = ElementTree.parse(facts["configuration"]).getroot()
    choices = config.find("Choices")
    assert choices is not None and [c.get("value") for c in choices] == list(tiny_bundle.info.labels)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks:
        (result,) = task["predictions"][0]["result"]
        assert result["from_name"] == choices.get("name") and result["to_name"] == choices.get("toName") == "video"
        assert result["type"] == "choices" and task["data"]["video"].startswith("/data/local-files/?d=")
        assert " " not in task["data"]["video"] and "&" not in task["data"]["video"]
    # A person confirms all but the first, which is wrong.
    predicted = [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks]
    right = ["corrected", *predicted[1:]]
    data = [{"video": task["data"]["video"]} for task in tasks]  # without the path, which this package adds
    for kept in (data, [task["data"] for task in tasks]):
        pairs = zip(kept, right, strict=True)
        file = exported(
            tmp_path / "export.json", *({"data": d, "annotations": [annotation(label)]} for d, label in pairs)
        )
        manifest = open_manifest(file)
        rows = manifest.table.to_pylist()
        assert {row["status"] for row in rows} == {"ok"} and len(rows) == 4
        found = {Path(row["path"]).name: manifest.labels[row["label"]] for row in rows}
        names = [Path(task["data"]["path"]).name for task in tasks]
        assert found == dict(zip(names, right, strict=True))


def test_windows_are_ranges_of_frames(scored: Path, tmp_path: Path) -> None:
    call = ("export", "windows.jsonl", "--to", "labelstudio", "--out", tmp_path / "t.json", "--files-root", scored)
    assert ssv2rt(*call, cwd=scored).returncode == 0
    config = ElementTree.parse(tmp_path / "t.xml").getroot()
    timeline, video = config.find("TimelineLabels"), config.find("Video")
    assert timeline is not None and video is not None and video.get("frameRate") == "$fps"
    rows = [json.loads(line) for line in (scored / "windows.jsonl").read_text().splitlines()]
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert len(tasks) == 4
    for task in tasks:
        assert task["data"]["video"].startswith("/data/local-files/?d=videos/a%20b%26") and task["data"]["fps"] == 12
        expected = [row for row in rows if Path(row["video"]).name == Path(task["data"]["path"]).name]
        results = task["predictions"][0]["result"]
        assert len({result["id"] for result in results}) == len(results) == len(expected) > 1
        for result, row in zip(results, expected, strict=True):
            (span,) = result["value"]["ranges"]
            assert result["type"] == "timelinelabels" and result["from_name"] == timeline.get("name")
            assert result["value"]["timelinelabels"] == [row["label"]]
            # Frame k, counted from 1, is shown from (k - 1) / 12 s on.
            assert (span["start"] - 1) / 12 == pytest.approx(row["start"], abs=0.5 / 12 + 1e-6)
            assert span["end"] / 12 == pytest.approx(row["end"], abs=0.5 / 12 + 1e-6)


def test_what_was_skipped_or_disagrees_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = [{"video": f"/data/local-files/?d=clips/{number}.webm"} for number in range(6)]
    timeline = {"type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 3}], "timelinelabels": ["x"]}}
    file = exported(
        tmp_path / "e.json",
        {"data": data[0], "annotations": [annotation("old", "2026-01-01"), annotation("new", "2026-02-01")]},
        {"data": data[1], "annotations": [annotation("skipped", was_cancelled=True)]},
        {"data": data[2], "annotations": []},
        {"data": data[3], "annotations": [{"result": [timeline]}]},
        {"data": data[4], "annotations": [annotation("gone", "2026-03-01", was_cancelled=True), annotation("kept")]},
        {"data": {"clip": "s/5.mp4", "n": 1, "split": "test"}, "annotations": [annotation("kept")]},
    )
    listing = list_clips(file)
    assert {clip.path: listing.labels[clip.label] for clip in listing.clips} == {
        "clips/0.webm": "new",
        "clips/4.webm": "kept",
        "s/5.mp4": "kept",
    }
    assert [clip.split for clip in listing.clips] == ["train", "train", "test"]
    for said in ("1 of 6 tasks were skipped", "1 of 6 tasks have no annotation", "timeline labels", "1 tasks disagree"):
        assert said in caplog.text
    assert "'/data/local-files/?d=clips/0.webm'" in caplog.text and "3 videos are not found" in caplog.text


def test_where_videos_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, here = tmp_path / "served", tmp_path / "here"
    for folder in (served, here):
        folder.mkdir()
    (served / "a b.webm").touch()
    (here / "c.webm").touch()
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(served))
    names = ["/data/local-files/?d=a%20b.webm", "/data/local-files/?d=c.webm", f"file://{served}/a%20b.webm", "c.webm"]
    (served / "100%25.webm").touch()
    names.append(f"file://{served}/100%25.webm")  # as it is, since this package writes such names
    names.append(f"http://localhost:8080/data/local-files/?d={str(served)[1:]}/a%20b.webm")
    monkeypatch.setenv("LABEL_STUDIO_BASE_DATA_DIR", str(tmp_path / "data"))
    (uploaded := tmp_path / "data" / "media" / "upload" / "3").mkdir(parents=True)
    (uploaded / "1f-a b.mp4").touch()
    names.append("/data/upload/3/1f-a%20b.mp4")
    for name in names:
        file = exported(here / "e.json", {"data": {"video": name}, "annotations": [annotation("x")]})
        (clip,) = list_clips(file).clips
        assert (here / clip.path).is_file(), name


def test_exports_as_json_min(tmp_path: Path) -> None:
    entries = [
        {"video": "a.mp4", "id": 7, "label": "old", "annotation_id": 1, "updated_at": "2026-01-01T00:00:00Z"},
        {"video": "a.mp4", "id": 7, "label": "new", "annotation_id": 2, "updated_at": "2026-02-01T00:00:00Z"},
        {"video": "b.mp4", "id": 8, "label": {"choices": ["x"]}, "annotation_id": 3, "split": "test"},
        {"video": "c.mp4", "id": 9, "annotation_id": 4},
    ]
    (tmp_path / "e.json").write_text(json.dumps(entries))
    listing = list_clips(tmp_path / "e.json")
    found = {clip.path: (clip.split, listing.labels[clip.label]) for clip in listing.clips}
    assert found == {"a.mp4": ("train", "new"), "b.mp4": ("test", "x")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"id": 1, "video": "a.mp4", "sentiment": "x", "annotation_id": 3}]', "export it as JSON"),
        ('[{"id": 1, "data": {"video": "a.mp4"}, "annotations": []}]', "no task has a choice"),
        ('[{"id": 1, "data": {"video": "a.mp4"}, "annotations": [{}]}]', "task 1 is not as Label Studio writes it"),
        ('[{"id": 1, "data": {}, "annotations": [{"result": []}]}]', "names no video"),
        ('{"data": {"video": "a.mp4"}, "annotations": []}', "expected a list of tasks"),
    ],
)
def test_other_exports_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(UserError, match=said) as found:
        list_clips(tmp_path / "e.json")
    assert "\n" not in str(found.value)


def test_labels_of_any_kind_are_in_the_configuration(tmp_path: Path) -> None:
    labels = ['a & "b" <c>', "two\nlines", "bell\x07", "漢字", "</View>", "tab\there", *map(str, range(6))]
    rows = [
        {"video": f"{n}.mp4", "status": "ok", "frames": 3, "label": label, "probability": 0.5}
        for n, label in enumerate(labels)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ssv2rt("export", "p.jsonl", "--to", "labelstudio", "--out", "t.json", cwd=tmp_path).returncode == 0
    config = ElementTree.parse(tmp_path / "t.xml").getroot()
    offered = [choice.get("value") for choice in config.iter("Choice")]
    assert offered == ['a & "b" <c>', "two\\nlines", "bell\\x07", "漢字", "</View>", "tab\there", *map(str, range(6))]
    assert config.find("Filter") is not None  # many labels can be searched
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks] == offered


def test_two_tasks_of_a_video_must_agree(tmp_path: Path) -> None:
    tasks = [{"data": {"video": "a.mp4"}, "annotations": [annotation(label)]} for label in ("x", "y")]
    with pytest.raises(UserError, match=r"'a\.mp4' is in several tasks"):
        list_clips(exported(tmp_path / "e.json", *tasks))
    several = annotation("x")
    several["result"][0]["value"]["choices"] = ["x", "y"]
    with pytest.raises(UserError, match="choose one"):
        list_clips(exported(tmp_path / "e.json", {"data": {"video": "a.mp4"}, "annotations": [several]}))


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    names = ["a%20b?.webm", "x#y&z.mp4", '<i>".mp4', "ü 漢.mp4"]
    for name in names:
        (tmp_path / name).touch()
    facts = {"status": "ok", "frames": 3, "label": "a & b", "probability": 0.5}
    paths = [*names[:3], f"file://{tmp_path}/{names[3]}", "s3://bucket/c d.mp4", "t.tar/m.mp4"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"video": path} | facts) + "\n" for path in paths))
    done = ssv2rt("export", "p.jsonl", "--to", "labelstudio", "--out", "t.json", cwd=tmp_path)
    assert done.returncode == 0 and "1 videos are in tar files" in done.stderr
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert tasks[4]["data"]["video"] == "s3://bucket/c d.mp4"
    for key in ("video", "path"):
        kept = [{"data": {key: task["data"][key]}, "annotations": [annotation("a & b")]} for task in tasks[:4]]
        assert {tmp_path / clip.path for clip in list_clips(exported(tmp_path / "e.json", *kept)).clips} == {
            tmp_path / name for name in names
        }


def test_files_outside_the_served_folder_and_files_that_exist_are_refused(scored: Path, tmp_path: Path) -> None:
    call = ("export", scored / "preds.csv", "--to", "labelstudio", "--out", tmp_path / "t.json")
    done = ssv2rt(*call, "--files-root", tmp_path, cwd=scored)
    assert done.returncode == 1 and "--files-root" in done.stderr and not list(tmp_path.iterdir())
    # Label Studio serves folders below that one, and not the files in it.
    done = ssv2rt(*call, "--files-root", "videos", cwd=scored)
    assert done.returncode == 1 and "give a folder above" in done.stderr and not list(tmp_path.iterdir())
    (tmp_path / "t.xml").write_text("mine")
    done = ssv2rt(*call, cwd=scored)
    assert done.returncode == 2 and "--overwrite" in done.stderr and (tmp_path / "t.xml").read_text() == "mine"


def test_a_table_is_one_line_for_pandas(scored: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(scored / "preds.csv")
    assert (frame.status == "ok").sum() == 4 and frame.probability.max() <= 1 and frame.label.notna().sum() == 4
