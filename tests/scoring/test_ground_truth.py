"""With annotations, their clips are scored and top-1 and top-5 accuracy are reported."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.dataset.index import index
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.ground_truth import GroundTruth
from ssv2rt.scoring.video_sources import Video
from tests.cli import Done, ssv2rt


def score(folder: Path, bundle: Bundle, *arguments: object) -> Done:
    return ssv2rt("score", *arguments, "--engine", bundle.path, "--json", cwd=folder)


@pytest.fixture(scope="module")
def annotations(tiny_set: Path) -> Path:
    (file,) = [path for path in tiny_set.rglob("validation.json") if path.is_file()]
    return file


def test_top1_and_top5_match_the_rows(tiny_bundle: Bundle, annotations: Path, tmp_path: Path) -> None:
    done = score(tmp_path, tiny_bundle, "--annotations", annotations, "--out", "p.csv", "--top-k", 1)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="")))
    entries = {
        entry["id"]: entry["template"].translate({ord("["): None, ord("]"): None})
        for entry in json.loads(annotations.read_text())
    }
    assert {Path(row["video"]).stem: row["expected"] for row in rows} == entries
    right = sum(row["label"] == row["expected"] for row in rows)
    assert facts["top-1"] == pytest.approx(100 * right / len(rows))
    assert 100 >= facts["top-5"] >= facts["top-1"] and list(rows[0]) == [
        "video",
        "status",
        "frames",
        "expected",
        "label",
        "probability",
    ]


def test_missing_clip_gets_a_row_and_counts_as_wrong(
    tiny_bundle: Bundle, annotations: Path, tiny_set: Path, tmp_path: Path
) -> None:
    entries = json.loads(annotations.read_text())[:5]
    (tmp_path / "some.json").write_text(json.dumps(entries))
    (tmp_path / "in").mkdir()
    for entry in entries[1:]:
        shutil.copy(tiny_set / "videos" / f"{entry['id']}.webm", tmp_path / "in")
    shutil.copy(tiny_set / "videos" / f"{entries[1]['id']}.webm", tmp_path / "in" / "unknown.webm")
    done = score(tmp_path, tiny_bundle, "in", "--annotations", "some.json", "--out", "p.csv")
    assert done.returncode == 3, done.stderr
    rows = {Path(row["video"]).stem: row for row in csv.DictReader((tmp_path / "p.csv").open(newline=""))}
    assert rows.keys() == {entry["id"] for entry in entries}
    assert rows[entries[0]["id"]]["status"] == "error: missing"
    right = sum(row["label"] == row["expected"] for row in rows.values())
    assert json.loads(done.stdout)["top-1"] == pytest.approx(100 * right / 5)
    parts = [
        score(tmp_path, tiny_bundle, "in", "--annotations", "some.json", "--out", f"{n}.csv", "--shard", f"{n}/2")
        for n in (1, 2)
    ]
    assert sum(json.loads(part.stdout)["videos"] for part in parts if part.stdout) == 5


def test_annotations_with_other_classes_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "1", "template": "Juggling [something]"}]')
    (tmp_path / "1.webm").touch()
    done = score(tmp_path, tiny_bundle, ".", "--annotations", "a.json", "--out", "p.csv")
    assert done.returncode == 1 and "no class of 'a.json' is a class of the engine: 'Juggling something'" in done.stderr
    done = score(tmp_path, tiny_bundle, "--annotations", "a.json", "--out", "p.csv")
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
    done = score(tmp_path, tiny_bundle, "--out", "p.csv")
    assert done.returncode == 2 and "nothing to score" in done.stderr


def test_answers_of_the_test_clips_are_annotations_too(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    (file,) = [path for path in tiny_set.rglob("test-answers.csv") if path.is_file()]
    answers = dict(line.split(";") for line in file.read_text().splitlines())
    done = score(tmp_path, tiny_bundle, "--annotations", file, "--out", "p.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="")))
    assert {Path(row["video"]).stem: row["expected"] for row in rows} == answers
    right = sum(row["label"] == row["expected"] for row in rows)
    assert json.loads(done.stdout)["top-1"] == pytest.approx(100 * right / len(answers))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1;Juggling [something]\n", "is a class of the engine: 'Juggling something'"),
        ("1,{label}\n", "line 1 is '1,{label}'; expected id;label"),
        ("1;{label}\n../2;{label}\n", "line 2 is"),
        ("1;{label}\n1;{label}\n", "clip '1' is named twice"),
        ("\n", "names no clips"),
    ],
)
def test_answers_that_are_none_are_refused(tiny_bundle: Bundle, tmp_path: Path, text: str, says: str) -> None:
    label = tiny_bundle.info.labels[0]
    file = tmp_path / "test-answers.csv"
    file.write_text(text.replace("{label}", label))
    with pytest.raises(UserError) as caught:
        GroundTruth.read(file, tiny_bundle.info.labels)
    assert says.replace("{label}", label) in str(caught.value)


def test_answers_as_ssv2_has_them_are_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """With a byte order mark, spaces, empty lines, and a label that holds brackets."""
    label = tiny_bundle.info.labels[0]
    (tmp_path / "a.csv").write_text(f"\ufeff\n7 ; {label.replace('something', '[something]')}\n\n", encoding="utf-8")
    assert GroundTruth.read(tmp_path / "a.csv", tiny_bundle.info.labels).labels == {"7": label}


def table_of(tiny_set: Path, file: Path, labels: dict[str, str], clips: int = 12) -> dict[str, str]:
    """Writes a table of the first clips, with other names for some classes. Returns the label of each path."""
    entries = json.loads((tiny_set / "train.json").read_text())[:clips]
    found = {}
    for entry in entries:
        name = entry["template"].replace("[", "").replace("]", "")
        found[str(tiny_set / "videos" / f"{entry['id']}.webm")] = labels.get(name, name)
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "label"), *found.items()])
    return found


def test_clips_of_classes_that_the_engine_lacks_are_scored_and_left_out_of_accuracy(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path
) -> None:
    first, second = tiny_bundle.info.labels[:2]
    labels = table_of(tiny_set, tmp_path / "t.csv", {first: "Juggling", second: second.lower()}, clips=40)
    done = score(tmp_path, tiny_bundle, "--annotations", "t.csv", "--out", "p.csv")
    assert done.returncode == 0, done.stderr
    rows = {row["video"]: row for row in csv.DictReader((tmp_path / "p.csv").open(newline="", encoding="utf-8"))}
    assert {name: row["expected"] for name, row in rows.items()} == labels
    unknown = sum(label in ("Juggling", second.lower()) for label in labels.values())
    assert unknown and f"so {unknown} of its 40 clips are left out of accuracy: 'Juggling'" in done.stderr
    assert f"'{second.lower()}' (did you mean '{second}'?)" in done.stderr
    facts = json.loads(done.stdout)
    counted = [row for row in rows.values() if row["expected"] in tiny_bundle.info.labels]
    assert len(counted) == 40 - unknown
    assert facts["top-1"] == pytest.approx(100 * sum(r["label"] == r["expected"] for r in counted) / len(counted))
    shares = {}
    for row in counted:
        shares.setdefault(row["expected"], []).append(row["label"] == row["expected"])
    classes = {found["label"]: found for found in facts["classes"]}
    assert {name: (len(hits), 100 * sum(hits) / len(hits)) for name, hits in shares.items()} == {
        name: (found["clips"], pytest.approx(found["accuracy"])) for name, found in classes.items()
    }
    mean = sum(found["accuracy"] for found in classes.values()) / len(classes)
    assert facts["mean class accuracy"] == pytest.approx(mean)
    assert [found["accuracy"] for found in facts["classes"]] == sorted(found["accuracy"] for found in facts["classes"])


def test_names_may_differ_in_unicode_normalization_and_outer_spaces(tmp_path: Path) -> None:
    classes = ("Caf\u00e9", "Tea ")
    (tmp_path / "a.csv").write_text("1;Cafe\u0301\n2; Tea\n3;tea\n", encoding="utf-8")
    truth = GroundTruth.read(tmp_path / "a.csv", classes)
    assert truth.labels == {"1": "Caf\u00e9", "2": "Tea ", "3": "tea"} and truth.unknown == {"tea"}


def test_every_form_of_data_is_taken_as_annotations(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    classes = tiny_bundle.info.labels
    whole = GroundTruth.read(tiny_set, classes)
    one = GroundTruth.read(tiny_set / "validation.json", classes)
    by_id = {Path(path).stem: label for path, label in whole.labels.items()}
    assert by_id == one.labels and all(Path(path).is_file() for path in whole.files.values())
    assert len(GroundTruth.read(tiny_set, classes, "all").labels) == 80

    _, path = index(tiny_set, out=tmp_path / "m.parquet")
    assert GroundTruth.read(path, classes).labels == whole.labels

    for clip, label in whole.labels.items():
        folder = tmp_path / "folders" / label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_set / clip, folder)
    folders = GroundTruth.read(tmp_path / "folders", classes)
    assert {Path(path).stem: label for path, label in folders.labels.items()} == by_id  # all: it has no splits
    with pytest.raises(UsageError, match="which is a single split; leave out --split"):
        GroundTruth.read(tiny_set / "validation.json", classes, "test")
    with pytest.raises(UserError, match="no test clips in"):
        GroundTruth.read(tmp_path / "folders", classes, "test")


def test_clips_of_a_data_set_are_found_by_the_end_of_their_paths(
    tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path
) -> None:
    """Files of the same name in different classes are different clips; a clip may be in a copy of the data set."""
    videos = sorted((tiny_set / "videos").iterdir())[:3]
    first, second = tiny_bundle.info.labels[:2]
    for place in ("data", "copy"):
        for label, video in ((first, videos[0]), (second, videos[1])):
            (tmp_path / place / label).mkdir(parents=True)
            shutil.copy(video, tmp_path / place / label / "1.webm")
    shutil.copy(videos[2], tmp_path / "copy" / "1.webm")
    done = score(tmp_path, tiny_bundle, "copy", "--annotations", "data", "--out", "p.csv")
    assert done.returncode == 0, done.stderr
    rows = {row["video"]: row["expected"] for row in csv.DictReader((tmp_path / "p.csv").open(newline=""))}
    assert rows == {f"copy/{first}/1.webm": first, f"copy/{second}/1.webm": second}
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "data" / first / "1.webm").unlink()
    done = score(tmp_path, tiny_bundle, "--annotations", "data", "--out", "q.csv")
    rows = {row["video"]: row["status"] for row in csv.DictReader((tmp_path / "q.csv").open(newline=""))}
    assert rows == {f"data/{second}/1.webm": "ok"}
    done = score(tmp_path, tiny_bundle, "data", "--split", "all", "--out", "r.csv")
    assert done.returncode == 2 and "--split all is a split of --annotations" in done.stderr


def test_videos_that_annotations_do_not_name_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"id": "1", "template": "x"}, {"id": "2", "template": "y"}]))
    truth = GroundTruth.read(tmp_path / "a.json", ["x", "y"])
    videos = [Video(name, Path(name)) for name in ("v/2.webm", "long.mp4", "v/9.webm", "other/2.mp4")]
    with caplog.at_level("WARNING"):
        for _ in range(2):  # to score, and to count them
            assert [video.name for video in truth.only(videos)] == ["v/2.webm", "1.webm"]
    assert caplog.text.count("2 of the videos, such as 'long.mp4', are none of the 2 clips of --annotations") == 1
