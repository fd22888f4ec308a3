"""Reports of a run: metrics.jsonl, TensorBoard, confusion matrix and figures."""

import json
import math
import re
from pathlib import Path

import av
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.index import open_manifest
from ssv2rt.report.plots import draw_confusion, draw_curves, draw_worst_classes
from ssv2rt.report.run_summary import print_worst_classes, summarize
from ssv2rt.training.confusion import confused_pairs, confusions, per_class_results, read_confusion, write_confusion
from ssv2rt.training.metrics_log import MetricsLog, read_metrics
from ssv2rt.training.trainer import Trainer
from tests.cli import ssv2rt
from tests.training.test_trainer import recipe

LABELS = ['Pushing, "something"', "NA", "Dropping [something]", "up ↑"]
MATRIX = np.array([[8, 2, 0, 0], [5, 5, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]])


def test_classes_are_sorted_by_recall_with_their_most_frequent_error() -> None:
    figures = per_class_results(MATRIX, LABELS)
    assert [(f.label, f.recall, f.confused_with, f.confused_clips) for f in figures] == [
        ("NA", 50.0, LABELS[0], 5),
        (LABELS[2], 75.0, "NA", 1),
        (LABELS[0], 80.0, "NA", 2),
    ]
    (first, second) = confused_pairs(MATRIX, LABELS)
    assert (first.first, first.second) == (LABELS[0], "NA")
    assert (first.first_predicted_as_second, first.second_predicted_as_first, first.share) == (2, 5, pytest.approx(35))
    assert (second.first, second.second, second.share) == ("NA", LABELS[2], pytest.approx(100 / 14))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6).flatmap(lambda k: arrays(np.int64, (k, k), elements=st.integers(0, 1000))))
def test_a_confusion_matrix_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, matrix: np.ndarray) -> None:
    labels = [*LABELS, "a\nb", "c,d"][: len(matrix)]
    path = tmp_path_factory.getbasetemp() / "confusion.csv"
    write_confusion(path, matrix, labels)
    assert (read_confusion(path, labels) == matrix).all()
    with pytest.raises(ValueError, match="not the confusion matrix of these classes"):
        read_confusion(path, [f"other {label}" for label in labels]) if matrix.any() else _refuse()


def _refuse() -> None:
    raise ValueError("not the confusion matrix of these classes")


def test_metrics_newer_than_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = create_run("t", root=tmp_path)
    log = MetricsLog(run, epoch=0, update=0)
    for update in range(1, 6):
        log.write(epoch=update / 4, update=update, loss=float(update), learning_rate=0.1)
    log.write(epoch=1, update=4, validation={"loss": 1.0})
    with run.metrics_file.open("a") as file:
        file.write('{"epoch": 3, "upd')
    MetricsLog(run, epoch=0, update=4)
    assert [line["update"] for line in read_metrics(run.metrics_file)] == [1, 2, 3, 4], (
        "the epoch is not in the checkpoint"
    )
    assert all(json.loads(line) for line in run.metrics_file.read_text().splitlines())


def test_tensorboard_gets_the_same_metrics(tiny_set: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = create_run("t", root=tmp_path)
    Trainer(recipe("train.tensorboard=true", "train.log_every=2"), open_manifest(tiny_set)).fit(run)
    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    lines = read_metrics(run.metrics_file)
    loss = [(event.step, pytest.approx(event.value)) for event in board.Scalars("loss")]
    assert [(line["update"], line["loss"]) for line in lines if "loss" in line] == loss and len(loss) == 4
    assert board.Scalars("validation/top1")[0].value == pytest.approx(lines[-1]["validation"]["top1"])


def test_summarize_draws_all_figures_of_a_run(tiny_run: Run, tiny_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = open_manifest(tiny_set).labels
    matrix = read_confusion(tiny_run.confusion_file, labels)
    line = read_metrics(tiny_run.metrics_file)[-1]["validation"]
    assert matrix.sum() == line["clips"] and 100 * matrix.trace() / matrix.sum() == pytest.approx(line["top1"])
    folder = summarize(tiny_run, labels)
    assert "worst classes" in capfd.readouterr().err
    for name in ("curves", "confusion", "worst-classes"):
        assert _share_of_ink(folder / f"{name}.png") > 0.005
        assert (folder / f"{name}.svg").read_text().lstrip().startswith("<?xml")


def test_pictures_say_run_split_clips_and_top1_and_every_line_has_a_name(tiny_run: Run, tiny_set: Path) -> None:
    labels = open_manifest(tiny_set).labels
    top1 = read_metrics(tiny_run.metrics_file)[-1]["validation"]["top1"]
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        folder = summarize(tiny_run, labels)
    title = f"{tiny_run.name}: 10 validation clips, top-1 {top1:.1f}% after epoch 1 of 1"
    curves, confusion, worst = ((folder / f"{n}.svg").read_text() for n in ("curves", "confusion", "worst-classes"))
    assert all(f"{title}<" in picture for picture in (curves, confusion, worst))
    names = (
        "training",
        "validation",
        "top-1, training",
        "top-1, validation",
        "top-5, validation",
        "of each optimizer step",
    )
    assert all(f">{name}</text>" in curves for name in names)
    assert f">{top1:.3g}  </text>" in curves  # a single epoch has its values beside its points
    assert labels[0] in confusion and labels[0] in worst


def test_top5_is_drawn_only_of_more_than_five_classes_and_a_learning_rate_of_few_steps(tmp_path: Path) -> None:
    validation = {"top1": 50.0, "top5": 100.0, "loss": 1.0}
    facts = {"train_loss": 2.0, "train_top1": 40.0, "learning_rate": 0.1, "validation": validation}
    lines = [{"epoch": epoch, "update": 2 * epoch, **facts} for epoch in (1, 2)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        for classes in (5, 6):
            draw_curves(lines, tmp_path / f"{classes}", Train(epochs=2), title="run", classes=classes, best=2)
    few, more = ((tmp_path / f"{classes}.svg").read_text() for classes in (5, 6))
    assert "top-5" not in few and "top-5, validation" in more
    assert "of each optimizer step" in few and "best epoch (2)" in few


@pytest.mark.parametrize("name", ["epoch", "update", "train_loss", "learning_rate"])
def test_impossible_numbers_in_the_log_are_not_drawn(tmp_path: Path, name: str) -> None:
    validation = {"top1": 50.0, "top5": 100.0, "loss": 1.0}
    facts = {"train_loss": 2.0, "train_top1": 40.0, "learning_rate": 0.1, "loss": 1.0, "validation": validation}
    for value in (math.nan, math.inf, -math.inf, 1e308, -5):
        lines = [{"epoch": 1, "update": 4, **facts}, {"epoch": 2, "update": 8, **facts, name: value}]
        draw_curves(lines, tmp_path / "curves", Train(), title="run", classes=6, best=1)
    assert _share_of_ink(tmp_path / "curves.png") > 0.005


def test_what_is_most_confused_has_a_row_for_each_direction(capfd: pytest.CaptureFixture[str]) -> None:
    assert confusions(MATRIX, LABELS, 2) == [("NA", LABELS[0], 5, 10), (LABELS[0], "NA", 2, 10)]
    print_worst_classes(MATRIX, LABELS)
    said = capfd.readouterr().err
    assert re.search(r'NA +Pushing, "something" +5 of 10', said) and re.search(
        r'Pushing, "something" +NA +2 of 10', said
    )
    print_worst_classes(np.diag([2, 3]), ["a", "b"])
    assert capfd.readouterr().err.splitlines() == ["all 5 clips are right"]


@pytest.mark.parametrize("classes", [2, pytest.param(174, marks=pytest.mark.slow), 201])
def test_figures_of_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes))
    matrix[1] = 0  # a class without clips
    labels = [
        f"Pretending to put something number {n} onto something else, which is far too long" for n in range(classes)
    ]
    draw_confusion(matrix, labels, tmp_path / "confusion", "a run: 9 clips")
    draw_worst_classes(matrix, labels, tmp_path / "worst", "a run: 9 clips")
    draw_curves([], tmp_path / "curves", Train(), title="a run", classes=classes)
    for name in ("confusion", "worst", "curves"):
        assert _share_of_ink(tmp_path / f"{name}.png") > 0.005


def test_evaluate_writes_its_results_to_a_folder(tiny_run: Run, tmp_path: Path) -> None:
    command = ("evaluate", tiny_run.path, "--split", "test", "--out")
    done = ssv2rt(*command, "out", "--json", cwd=tmp_path)
    assert done.returncode == 0 and "most confused" in done.stderr, done.stderr
    assert json.loads(done.stdout)["clips"] == 10
    rows = (tmp_path / "out" / "confusion.csv").read_text().splitlines()
    assert rows[0] == '"label","predicted","clips"' and len(rows) > 1
    assert (tmp_path / "out" / "worst-classes.png").is_file()
    (tmp_path / "file").touch()
    done = ssv2rt(*command, "file", cwd=tmp_path)
    assert done.returncode == 1 and "cannot write to 'file'" in done.stderr and "Traceback" not in done.stderr


def _share_of_ink(path: Path) -> float:
    """Share of the pixels of a picture that are not white."""
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return float((picture < 250).any(-1).mean())


def test_labels_that_look_like_markup_formulas_or_commands_are_shown_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = ["[/red]up", "$\\frac$", "a\x1b[2Jb", "$x$ [bold]"]
    draw_confusion(MATRIX, labels, tmp_path / "confusion", "$x$: 3 clips")
    draw_worst_classes(MATRIX, labels, tmp_path / "worst", "$x$: 3 clips")
    print_worst_classes(MATRIX, labels)
    said = capfd.readouterr().err
    assert "[/red]up" in said and "$\\frac$" in said and "a\\x1b[2Jb" in said and "\x1b" not in said
    assert "Glyph" not in said and (tmp_path / "worst.svg").is_file()
