"""Data of one's own that does not fit: each is one line that says what was found, and what to do."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.dataset.index import open_manifest
from tests.cli import ssv2rt
from tests.conftest import numbered_video

EXPECTED = "expected SSv2's JSON files, a folder for each class, or a .csv, .tsv or .parquet table"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_video(tmp_path_factory.mktemp("one") / "clip.mp4", "libx264", frames=3)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], f"no data set in '{{data}}', which is empty; {EXPECTED}"),
        (["b.zip", "a.zip", "c.zip", "d.zip"], "which holds 'a.zip', 'b.zip', 'c.zip' and 1 more; expected"),
        (
            ["a/1.mp4", "a/2.mp4"],
            "'{data}' has only one class, 'a', and training needs at least two: a folder for each",
        ),
        (["videos/a/1.mp4", "videos/b/1.mp4"], "if those are 'a', 'b' and so on, give --data '{data}/videos'"),
        (["a/1.mp4", "b/1.mp4"], "(there are: 2 train); they are held out of classes that have at least two clips"),
        (
            ["val/a/1.mp4", "val/b/1.mp4"],
            "'val' in '{data}' is taken to be a class, and not a split, as there is no folder 'train' with class folders",
        ),
        (
            ["a/1.mp4", "a/2.mp4", "a/bad.mp4", "b/1.mp4", "b/2.mp4"],
            "bad.mp4': empty file; at most 1.00% may be; mend or remove them (`ssv2rt index '{data}'` lists all)",
        ),
    ],
)
def test_it_is_one_line(video: Path, tmp_path: Path, files: Sequence[str], says: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in files:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, data / name) if "bad" not in name else (data / name).touch()
    done = ssv2rt("train", "--data", data, "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and says.format(data=data) in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "Traceback" not in done.stderr


def test_the_share_of_unusable_clips_that_is_named_is_enough(video: Path, tmp_path: Path) -> None:
    for number in range(12):
        for name in ("a", "b"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(video, tmp_path / "data" / name / f"{number}.mp4")
    for number in range(5):
        (tmp_path / "data" / "a" / f"{number}.mp4").write_bytes(b"")
    command = ("train", "--data", tmp_path / "data", "--dry-run")
    said = ssv2rt(*command, cwd=tmp_path).stderr
    share = said.rpartition("--set data.max_bad=")[2].strip()
    done = ssv2rt(*command, "--set", f"data.max_bad={share}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_clips_of_a_table_are_said_with_their_names_and_the_table(video: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    for name in "abcdef":
        shutil.copy(video, tmp_path / f"{name}.mp4")
    rows = "".join(f"{name}.mp4,{label}\n" for name, label in zip("abcde", "xxyyy", strict=True))
    for row, says in (
        ("f.mp4,\n", f"1 of 4 training clips have no label, such as '{tmp_path}/f.mp4'; give each one, or leave these"),
        (
            "gone.mp4,x\n",
            f"gone.mp4': missing; at most 1.00% may be; mend or remove them (`ssv2rt index '{table}'` lists",
        ),
    ):
        table.write_text(f"path,label\n{rows}{row}")
        done = ssv2rt("train", "--data", table, "--dry-run", cwd=tmp_path)
        assert done.returncode == 1 and says in done.stderr, done.stderr
    table.write_text("path,label,split\na.mp4,x,train\nb.mp4,y,train\n")
    with pytest.raises(
        UserError, match=r"no test clips in '.*clips.csv' \(there are: 2 train\); give data that has them"
    ):
        open_manifest(table).split("test")
