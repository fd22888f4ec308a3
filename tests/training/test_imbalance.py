"""Imbalanced classes: balanced sampling, weights in the loss, and the best epoch by mean class accuracy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.run_folders import create_run
from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.labels import NO_MIRROR
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.imbalance import after_flips, best_by, class_weights, imbalance_in_words, quality
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.trainer import Trainer
from tests.conftest import TINY_SETTINGS
from tests.training.test_resume import assert_same, stop_at

CLIPS = np.array([40, 10, 0, 2])


def test_weights_follow_the_number_of_clips_and_are_one_on_average() -> None:
    for how, power in (("inverse", 1.0), ("sqrt", 0.5)):
        weights = class_weights(CLIPS, Train(class_weights=how))  # type: ignore[arg-type]
        assert weights is not None and weights[2] == 0
        assert float((weights * torch.tensor(CLIPS)).sum()) == pytest.approx(CLIPS.sum(), rel=1e-5)
        assert float(weights[1] / weights[0]) == pytest.approx(4**power, rel=1e-5)
    assert class_weights(CLIPS, Train()) is None


def test_flips_are_counted_where_they_change_labels() -> None:
    """Two sides of an action, one whose other side is no class, and one without sides."""
    mirrored = np.array([1, 0, NO_MIRROR, 3])
    assert after_flips(np.array([30, 0, 8, 5]), mirrored).tolist() == [15, 15, 8, 5]


@pytest.mark.parametrize(("setting", "clips", "by"), [
    ("top1", CLIPS, "top1"),
    ("mean-class", np.array([5, 5]), "mean-class"),
    ("auto", CLIPS, "mean-class"),
    ("auto", np.array([30, 10, 0]), "top1"),
])  # fmt: skip
def test_the_best_epoch_is_chosen_by_what_the_recipe_says(setting: str, clips: np.ndarray, by: str) -> None:
    assert best_by(clips, Train(best_by=setting)) == by  # type: ignore[arg-type]


def test_accuracy_decides_and_then_the_loss() -> None:
    often, rare = (Evaluation(top1, 100, 1.0, 10, 0, mean) for top1, mean in ((90.0, 50.0), (80.0, 60.0)))
    assert quality(often, "top1") > quality(rare, "top1") and quality(rare, "mean-class") > quality(often, "mean-class")
    assert (
        quality(replace(often, loss=0.5), "top1")
        > quality(often, "top1")
        > quality(replace(often, loss=np.nan), "top1")
    )


def test_of_equal_epochs_the_first_is_the_best(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same accuracy and same loss: the weights do not change at this learning rate."""
    settings = ("train.epochs=2", "train.freeze_backbone=true", "train.learning_rate=1e-30", "train.batch_size=1")
    recipe = load_recipe("ssv2-resnet3d18", (*TINY_SETTINGS, *settings, "train.mixup=0.2"))
    run = create_run("t", root=tmp_path)
    best = Trainer(recipe, open_manifest(tiny_set)).fit(run)
    first, second = (line["validation"] for line in read_metrics(run.metrics_file) if "validation" in line)
    assert first == second and first["top1"] == best.top1 and run.best_epoch == 1
    assert "with train.batch_size = 1 they do nothing" in capsys.readouterr().err


def test_imbalance_is_said_with_what_is_done_about_it() -> None:
    text = imbalance_in_words(CLIPS, "abcd", Train())
    assert (
        "40 training clips of 'a', 2 of 'd'; train.sampler = balanced, or" in text and "top-1 (train.best_by)" in text
    )
    text = imbalance_in_words(CLIPS, "abcd", Train(sampler="balanced", best_by="auto"))
    assert "'d'; train.sampler = balanced; the best epoch is that with the best mean class accuracy" in text
    assert not imbalance_in_words(np.array([3, 1, 0]), "abc", Train())


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="would balance the classes twice; take one of them"):
        load_recipe("demo", ("train.sampler=balanced", "train.class_weights=sqrt"))


@pytest.fixture(scope="module")
def imbalanced(tiny_set: Path) -> Manifest:
    """All training clips of class 0, two of class 1 and one of class 2."""
    manifest = open_manifest(tiny_set)
    table = manifest.table.filter(pa.array(manifest.table["label"].to_numpy() < 3))
    rows = np.arange(len(table))
    train = table["split"].to_numpy() == "train"
    label = table["label"].to_numpy()
    few = [row for number, most in ((1, 2), (2, 1)) for row in rows[train & (label == number)][most:]]
    return replace(manifest, labels=manifest.labels[:3], table=table.filter(pa.array(~np.isin(rows, few))))


def test_class_weights_are_in_the_loss_of_a_step(imbalanced: Manifest) -> None:
    settings = (*TINY_SETTINGS, "train.class_weights=inverse", "train.batch_size=9", "augment.flip=never")
    trainer = Trainer(load_recipe("ssv2-resnet3d18", settings), imbalanced)
    step, clips = trainer.training_step, torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    step.model.eval()
    step.backward(clips, labels, epoch=1, step=0, last=True)
    losses = F.cross_entropy(step.model(clips), labels, reduction="none")
    counts = np.bincount(trainer.train_split.classes)
    weights = torch.tensor(counts.sum() / (3 * counts))
    assert step.metrics.read()[0] == pytest.approx(float((weights * losses).mean().detach()), rel=1e-4)
    sides = replace(imbalanced, labels=("turn left", "turn right", "turn"))
    work = Trainer(load_recipe("ssv2-resnet3d18", (*settings, "augment.flip=label-aware")), sides).training_step
    work.model.eval()
    shares = []
    for label in (0, 1):
        work.metrics.values.zero_()
        work.backward(clips[:1], torch.tensor([label]), epoch=1, step=0, last=True)
        shares.append(
            work.metrics.read()[0] / float(F.cross_entropy(work.model(clips[:1]), torch.tensor([label])).detach())
        )
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_a_balanced_run_resumes_exactly(
    imbalanced: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssv2rt.training.signals import Stopped

    settings = (*TINY_SETTINGS, "train.sampler=balanced", "train.batch_size=3", "train.epochs=2", "train.best_by=auto")
    recipe = load_recipe("ssv2-resnet3d18", (*settings, "train.learning_rate=0.01"))
    whole, stopped = create_run("whole", root=tmp_path), create_run("stopped", root=tmp_path)
    result = Trainer(recipe, imbalanced).fit(whole)
    assert result.mean_class_accuracy is not None
    assert "the best epoch is that with the best mean class accuracy" in capsys.readouterr().err
    first = Trainer(recipe, imbalanced)
    stop_at(first, monkeypatch, updates=first.optimizer_steps_per_epoch + 1)
    with pytest.raises(Stopped):
        first.fit(stopped)
    second = Trainer(recipe, imbalanced)
    second.resume(stopped)
    second.fit(stopped)
    assert_same(whole, stopped)
