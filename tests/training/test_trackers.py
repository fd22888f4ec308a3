"""Experiment trackers get what metrics.jsonl has, and cannot end a training."""

import json
from pathlib import Path

import pytest

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.training.metrics_log import MetricsLog, read_metrics
from ssv2rt.training.trackers import flatten, open_trackers
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS

MINE = """
import json

class Mine:
    def __init__(self, run, recipe, update):
        self.file = (run / "mine.jsonl").open("a")
        self.file.write(json.dumps([str(run), recipe["train"]["epochs"], update]) + "\\n")

    def write(self, facts, update):
        self.file.write(json.dumps(facts | {"update": update}) + "\\n")

    def close(self):
        self.file.write("closed\\n")
        self.file.close()

class Failing(Mine):
    def write(self, facts, update):
        raise KeyError("no connection")

def refusing(run, recipe, update):
    raise RuntimeError("not logged in")

def forgetful(run, recipe, update):
    Mine(run, recipe, update)

number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of trackers."""
    (tmp_path / "mytrackers.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mytrackers", raising=False)
    return tmp_path


def run_with(tracker: str, tiny_set: Path, folder: Path) -> Run:
    run = create_run("t", root=folder)
    recipe = load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, f"train.tracker={tracker}", "train.log_every=3"))
    Trainer(recipe, open_manifest(tiny_set)).fit(run)
    return run


def test_a_function_gets_every_line_of_metrics(place: Path, tiny_set: Path) -> None:
    run = run_with("mytrackers:Mine", tiny_set, place)
    first, *lines, last = (run.path / "mine.jsonl").read_text().splitlines()
    assert json.loads(first) == [str(run.path), 1, 0] and last == "closed"
    assert [json.loads(line) for line in lines] == [flatten(line) for line in read_metrics(run.metrics_file)]
    assert {"epoch", "update", "validation/top1", "learning_rate"} <= json.loads(lines[-1]).keys()


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(
    place: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with("mytrackers:Failing", tiny_set, place)
    said = capsys.readouterr().err
    assert (
        said.count("the tracker Failing failed, and gets no more metrics") == 1 and "KeyError: 'no connection'" in said
    )
    assert (run.path / "mine.jsonl").read_text().count("closed") == 1
    assert len(read_metrics(run.metrics_file)) == 3


@pytest.mark.parametrize(
    ("tracker", "error", "says"),
    [
        ("mytrackers", UsageError, "give tensorboard, wandb, or a function as module:function"),
        ("mytrackers:gone", UsageError, "module 'mytrackers' has no function 'gone'"),
        ("mytrackers:number", UsageError, "module 'mytrackers' has no function 'number'"),
        ("mytrackers:forgetful", UsageError, "gave NoneType, which lacks write.facts, update. or close"),
        ("nowhere:f", UserError, "cannot be imported: No module named 'nowhere'"),
        ("mytrackers:refusing", UserError, "failed to start: RuntimeError: not logged in; mend it, or leave it out"),
    ],
)
def test_a_tracker_that_cannot_start_is_one_line(place: Path, tracker: str, error: type[Exception], says: str) -> None:
    recipe = load_recipe("demo", (f"train.tracker={tracker}",))
    with pytest.raises(error, match=says):
        open_trackers(Run(place), recipe, 0)


def test_weights_and_biases_offline(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = create_run("my run", root=place)
    for update in (0, 2):  # a run that is resumed
        trackers = open_trackers(run, load_recipe("demo", ("train.tracker=wandb",)), update)
        log = MetricsLog(run, epoch=0, update=update, trackers=trackers)
        log.write(epoch=0.5, update=update + 1, loss=1.5, learning_rate=0.1)
        log.write(epoch=1, update=update + 2, validation={"top1": 50.0})
        log.close()
    files = list(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        assert b"my-run" in content and b"validation/top1" in content and b"learning_rate" in content
