"""The share of validation clips of data sets without a validation split of their own."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Data
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.prepare import prepare
from tests.conftest import numbered_video


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 1, 2, 7 and 20 clips."""
    root = tmp_path_factory.mktemp("own") / "data"
    video = numbered_video(root.parent / "clip.mp4", "libx264", frames=3)
    for name, count in (("one", 1), ("two", 2), ("seven", 7), ("twenty", 20)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(video, root / name / f"{number}.mp4")
    return root


def held_out(root: Path, share: float) -> tuple[Manifest, set[str]]:
    manifest = prepare(Data(root=str(root), validation_share=share))
    rows = manifest.table.select(["id", "split"]).to_pylist()
    return manifest, {row["id"] for row in rows if row["split"] == "validation"}


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (0.1, {"two": 1, "seven": 1, "twenty": 2}),
        (0.3, {"two": 1, "seven": 2, "twenty": 6}),
        (0.99, {"two": 1, "seven": 6, "twenty": 19}),
    ],
)
def test_the_share_is_that_of_each_class_and_leaves_each_a_training_clip(
    folders: Path, share: float, counts: dict[str, int]
) -> None:
    manifest, held = held_out(folders, share)
    assert Counter(clip.partition("/")[0] for clip in held) == counts
    assert len(manifest.split("train")) == 30 - len(held) and len(manifest.split("validation")) == len(held)


def test_the_same_clips_are_held_out_each_time_and_a_larger_share_adds_to_them(folders: Path, tmp_path: Path) -> None:
    small, large = (held_out(folders, share)[1] for share in (0.2, 0.5))
    assert small < large and held_out(folders, 0.2)[1] == small
    shutil.copytree(folders, tmp_path / "copy", ignore=shutil.ignore_patterns("*.parquet", "*.csv"))
    assert held_out(tmp_path / "copy", 0.2)[1] == small


def test_a_validation_split_of_its_own_stays_and_the_setting_is_said_to_have_no_effect(
    tiny_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = prepare(Data(root=str(tiny_set))).table
    assert not capfd.readouterr().err
    again = prepare(Data(root=str(tiny_set), validation_share=0.5)).table
    assert again["split"].to_pylist() == before["split"].to_pylist()
    said = capfd.readouterr().err
    assert f"data.validation_share = 0.5 has no effect: '{tiny_set}' has a validation split of its own" in said


def test_a_share_of_nothing_or_all_is_refused() -> None:
    for share in (0, 1):
        with pytest.raises(UsageError, match="data.validation_share"):
            load_recipe("small", (f"data.validation_share={share}",))
