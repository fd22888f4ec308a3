"""With annotations, their clips are scored and top-1 and top-5 accuracy are reported."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.ground_truth import GroundTruth
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
    assert done.returncode == 1 and "'Juggling something', which is not among the classes" in done.stderr
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
        ("1;Juggling [something]\n", "'Juggling something', which is not among the classes"),
        ("1,{label}\n", "line 1 is '1,{label}'; expected id;label"),
        ("1;{label}\n../2;{label}\n", "line 2 is"),
        ("1;{label}\n1;{label}\n", "clip '1' is named twice"),
        ("\n", "names no clips"),
    ],
)
def test_answers_that_are_none_are_refused(tiny_bundle: Bundle, tmp_path: Path, text: str, says: str) -> None:
    label = tiny_bundle.info.labels[0]
    (tmp_path / "a.csv").write_text(text.replace("{label}", label))
    with pytest.raises(UserError) as caught:
        GroundTruth.read(tmp_path / "a.csv", tiny_bundle.info.labels)
    assert says.replace("{label}", label) in str(caught.value)


def test_answers_as_ssv2_has_them_are_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """With a byte order mark, spaces, empty lines, and a label that holds brackets."""
    label = tiny_bundle.info.labels[0]
    (tmp_path / "a.csv").write_text(f"\ufeff7 ; {label.replace('something', '[something]')}\n\n", encoding="utf-8")
    assert GroundTruth.read(tmp_path / "a.csv", tiny_bundle.info.labels).labels == {"7": label}
