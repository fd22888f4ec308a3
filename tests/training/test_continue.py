"""More epochs for a run, and what resuming says."""

import json
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.run_folders import Run
from ssv2rt.training.metrics_log import read_metrics
from tests.cli import ssv2rt


@pytest.fixture
def run(tmp_path: Path, tiny_run: Run) -> Run:
    """A finished run of one epoch."""
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "t", symlinks=True)
    return Run(tmp_path / "runs" / "t")


def resume(run: Run, *words: str) -> tuple[int, str]:
    done = ssv2rt("train", "--resume", "t", *words, "--json", cwd=run.path.parents[1])
    return done.returncode, done.stderr


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(run: Run) -> None:
    code, said = resume(run)
    assert (
        code == 0
        and "run 't' is finished: 1 of 1 epochs; `ssv2rt train --resume t --epochs 2` trains it longer" in said
    )
    assert "training resnet" not in said
    before = run.metrics_file.read_text()
    code, said = resume(run, "--epochs", "3", "--set", "train.log_every=1")  # which changes no result
    assert code == 0 and "clips, cpu, fp32: run 'runs/t'" in said, said
    assert "in epochs 2 to 3, a cosine takes the learning rate from 0.01, a tenth of its peak, to 0" in said
    assert run.metrics_file.read_text().startswith(before)
    lines = [line for line in read_metrics(run.metrics_file) if "validation" in line]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and lines[1]["learning_rate"] < 0.01
    assert (run.recipe().train.epochs, run.recipe().train.continued) == (3, (1,))
    assert (run.path / "summary" / "curves.png").is_file()
    code, said = resume(run, "--epochs", "3")  # the same command again
    assert code == 0 and "is finished: 3 of 3 epochs" in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--epochs", "3", "--set", "train.epochs=3"), 2, "are the same setting; leave out one of the two"),
        (
            ("--set", "train.epochs=2"),
            1,
            "train.epochs was 1, and is 2; leave out train.epochs, continue it with",
        ),
        (("--set", "train.learning_rate=1"), 1, "leave out train.learning_rate, or start a new run"),
    ],
)
def test_what_cannot_be_changed_is_said_with_the_option_to_leave_out(
    run: Run, words: tuple[str, ...], code: int, says: str
) -> None:
    before = run.recipe_file.read_text()
    done, said = resume(run, *words)
    assert done == code and says in said and "change the recipe back" not in said
    assert run.recipe_file.read_text() == before


def test_a_changed_file_is_named_and_fewer_epochs_are_refused(run: Run) -> None:
    assert resume(run, "--epochs", "2")[0] == 0
    code, said = resume(run, "--epochs", "1")
    assert code == 2 and "--epochs 1: run 'runs/t' has 2 already; give more" in said
    run.recipe_file.write_text(run.recipe_file.read_text().replace("erase = 0.0", "erase = 0.5"))
    code, said = resume(run, "--set", "train.seed=7")
    assert code == 1
    assert "leave out train.seed, change the recipe back in 'runs/t/recipe.toml', or start a new run" in said


def test_epochs_of_a_new_run_keep_the_share_of_the_warm_up(tmp_path: Path, tiny_set: Path) -> None:
    words = (
        "train",
        "ssv2-resnet3d18",
        "--data",
        tiny_set,
        "--epochs",
        "1",
        "--dry-run",
        "--json",
        "--set",
        "clip.size=32",
    )
    done = ssv2rt(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
