"""Classes and folders that are probably not meant as they are."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from ssv2rt.dataset.class_warnings import class_warnings
from ssv2rt.dataset.index import open_manifest
from tests.cli import ssv2rt
from tests.conftest import numbered_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_video(tmp_path_factory.mktemp("clip") / "x.mp4", "libx264", frames=2)


def folders(root: Path, clip: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            shutil.copyfile(clip, root / name / f"{number}.mp4")
    return root


def test_classes_in_one_split_are_named_by_index_and_each_time_by_train(tmp_path: Path, clip: Path) -> None:
    folders(tmp_path / "data", clip, "train/up", "train/down", "val/up", "val/odd", "holdout/up")
    once = ssv2rt("index", "data", cwd=tmp_path)
    assert once.returncode == 0
    for _ in range(2):  # the second time, the manifest is there
        plan = ssv2rt("train", "--data", "data", "--dry-run", "--set", "clip.size=32", cwd=tmp_path)
        assert plan.returncode == 0, plan.stderr
        for said in (once.stderr, plan.stderr):
            assert "1 of 3 classes have only validation clips, so the network cannot learn them: 'odd'" in said
            assert "1 of 3 classes have only training clips, so their accuracy is not measured: 'down'" in said
            assert "these folders are left out: 'holdout'; names of splits are train," in said


def test_names_that_differ_only_in_form_are_named(tmp_path: Path, clip: Path) -> None:
    composed = unicodedata.normalize("NFC", "café")
    decomposed = unicodedata.normalize("NFD", "café")
    root = folders(tmp_path, clip, composed, decomposed, "Push it", "push it", "pull it")
    (first, second) = class_warnings(open_manifest(root))
    assert "'Push it', 'push it'; if they are meant to be one class" in first
    assert r"'cafe\u0301', 'caf\xe9'" in second


def test_folders_that_look_like_splits_are_named(tmp_path: Path, clip: Path) -> None:
    root = folders(tmp_path, clip, "train_set/up", "train_set/down", "heldout/up", "wave/deep", "plain")
    (warning,) = class_warnings(open_manifest(root))
    assert "the folders 'heldout', 'train_set' in" in warning and "are taken to be classes" in warning


def test_a_folder_above_the_data_set_is_told(tmp_path: Path, clip: Path) -> None:
    root = folders(tmp_path, clip, "UCF-101/up", "UCF-101/down")
    (warning,) = class_warnings(open_manifest(root))
    assert warning.endswith(f"if its folders are classes or splits, give '{root}/UCF-101'")


def test_a_plain_data_set_gives_no_warning(tmp_path: Path, clip: Path, tiny_set: Path) -> None:
    assert class_warnings(open_manifest(folders(tmp_path, clip, "up", "down"))) == []
    assert class_warnings(open_manifest(tiny_set)) == []
