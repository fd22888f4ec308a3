"""What `ssv2rt train`, `evaluate` and `build-engine` do, as functions that return objects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UserError
from ssv2rt.core.locks import exclusive
from ssv2rt.core.recipes import Data
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.prepare import export_test_clips, override_root, prepare
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.request import BuildRequest, build_as_requested
from ssv2rt.published.import_run import ImportRequest, import_as_requested
from ssv2rt.report.html.make import make_report, make_report_of_evaluation
from ssv2rt.report.html.of_run import Evaluated
from ssv2rt.report.html.page import check_report_name
from ssv2rt.report.predictions import prediction_recorder
from ssv2rt.report.run_summary import summarize, write_evaluation
from ssv2rt.scoring.writers import check_output
from ssv2rt.training.confusion import per_class_results
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.request import EvaluateRequest, TrainRequest, evaluate_as_requested, train_as_requested
from ssv2rt.training.results import record_result

Settings = Mapping[str, object] | Sequence[str]
"""Settings of a recipe: {"train.epochs": 10}, or ["train.epochs=10"] as --set has them; also a single text of these."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    run: Path
    """Folder of the run. `ssv2rt.load`, `evaluate` and `build_engine` take it."""
    result: Evaluation
    """The evaluation of the best epoch."""
    labels: tuple[str, ...] = field(repr=False)
    """Class names, in order."""
    pictures: Path
    """Folder with curves and the confusion matrix."""


@dataclass(frozen=True)
class EvaluateResult:
    """Accuracy of a run's model."""

    run: Path
    """Folder of the run."""
    epoch: int
    """The epoch of the checkpoint that was evaluated, from 1."""
    split: str
    """The split that it was evaluated on."""
    labels: tuple[str, ...] = field(repr=False)
    """Class names of the model, in order."""
    result: Evaluation
    """Accuracies, loss and confusion matrix."""

    def per_class(self) -> list[tuple[str, int, float]]:
        """Label, number of clips and accuracy in percent of each class that has clips, the least accurate first."""
        assert self.result.confusion is not None
        return [(row.label, row.clips, row.recall) for row in per_class_results(self.result.confusion, self.labels)]


def train(
    recipe: PathLike | None = None,
    data: PathLike | None = None,
    *,
    settings: Settings = (),
    name: str = "",
    init: str | None = None,
    epochs: int | None = None,
    resume: str | None = None,
    report: PathLike | None = None,
) -> TrainResult | None:
    """Trains a model, as `ssv2rt train` does.

    Args:
        recipe: name of a training recipe, or path of a .toml file; by default "demo" or, with `data`, "ssv2-resnet3d18" on a
            GPU and "small" on a CPU.
        data: the data set: a folder, a table or an annotation file; by default the recipe's.
        settings: changes to the recipe, such as {"train.epochs": 10} or ["train.epochs=10"].
        name: of the run; by default recipe and time.
        init: initial weights: a file, a run, or the name of a published network.
        epochs: number of epochs, of which the warm-up keeps its share; with `resume`, more than the run has.
        resume: a run to continue, or "latest"; without `recipe`, `name` and `init`.
        report: an .html file for the report of the run, as `ssv2rt report` writes it.

    Returns:
        The result; None in processes other than rank 0 of a distributed training.

    Raises:
        UsageError: there is no such recipe, a setting is out of range, or arguments exclude each other.
        UserError: there is no such run or data, another process trains the run, or training diverges.
    """
    if report is not None:
        check_report_name(Path(report))
    trained = train_as_requested(
        TrainRequest(
            recipe=_text(recipe),
            data=_path(data),
            overrides=overrides(settings),
            name=name,
            init=init,
            epochs=epochs,
            resume=resume,
        )
    )
    if trained is None:
        return None
    # Another process that has resumed the run by now has nothing to train, and ends soon.
    with trained.run.os_errors_as_user_errors(), exclusive(trained.run.path, "summarizing", wait=True):
        pictures = summarize(trained.run, trained.manifest.labels)
    if trained.data.synthetic and trained.data.test_videos:
        export_test_clips(trained.manifest, Path(trained.data.test_videos))
    if report is not None:
        make_report(str(trained.run.path), Path(report))
    return TrainResult(trained.run.path, trained.result, trained.manifest.labels, pictures)


def evaluate(
    run: PathLike | None = None,
    data: PathLike | None = None,
    *,
    split: str = "validation",
    checkpoint: str = "best",
    views: str | None = None,
    settings: Settings = (),
    predictions: PathLike | None = None,
    overwrite: bool = False,
    out: PathLike | None = None,
    report: PathLike | None = None,
) -> EvaluateResult:
    """Evaluates a run's model on labeled clips, as `ssv2rt evaluate` does.

    Args:
        run: name or folder of a run; by default the newest.
        data: another data set than the run's own. Its classes are matched by name, and may be fewer.
        split: "validation", "test", "train" or "all".
        checkpoint: "best" or "last".
        views: temporal clips x spatial crops to average, such as "2x3"; by default the recipe's.
        settings: changes of how clips are read, such as "clip.size=256", or a mapping such as {"clip.size": 256}.
        predictions: a .csv, .parquet or .jsonl file for a row of each clip.
        overwrite: replace that file.
        out: a folder for the confusion matrix and its pictures.
        report: an .html file for a report of the run with these figures and clips. It is replaced if it exists.

    Raises:
        UsageError: `views` or a setting is invalid, the file of `predictions` exists, or `report` is no .html file.
        UserError: there is no such run, checkpoint, split or data, or the model knows no class of the data.
    """
    if report is not None:
        check_report_name(Path(report))
    request = EvaluateRequest(
        run=_text(run),
        split=split,
        data=_path(data),
        checkpoint=checkpoint,
        views=views,
        overrides=overrides(settings),
    )
    recorder = None
    if predictions is not None:
        check_output(Path(predictions), overwrite=overwrite, option="--predictions")
        recorder = prediction_recorder(Path(predictions))
    folder = _path(out)
    with exclusive(folder, "evaluating into") if folder else nullcontext():
        found, trained, result = evaluate_as_requested(request, recorder)
        if folder:
            write_evaluation(folder, result, trained.labels, run=found.name, split=split)
    record_result(found, result, request, trained)
    if report is not None:
        evaluated = Evaluated(result, split, checkpoint, trained.recipe)
        make_report_of_evaluation(found, Path(report), evaluated, data=request.data)
    return EvaluateResult(found.path, trained.epoch, split, trained.labels, result)


def build_engine(
    run: PathLike | None = None,
    precision: str | None = None,
    *,
    data: PathLike | None = None,
    calibrate_on: Sequence[PathLike] = (),
    max_drop: float | None = None,
    backend: str = "auto",
    targets: Sequence[str] = (),
    recipe: PathLike | None = None,
    settings: Settings = (),
) -> Bundle:
    """Builds an engine of a run's best checkpoint and compares it, as `ssv2rt build-engine` does.

    Args:
        run: name or folder of a run; by default the newest.
        precision: "fp32", "bf16", "fp16", "int8" or "fp8"; by default the engine recipe's.
        data: data set for calibration and comparison; by default the run's.
        calibrate_on: int8, fp8: unlabeled videos, folders or @lists for calibration.
        max_drop: int8, fp8: largest drop of top-1 in points; sensitive blocks stay in floating point.
        backend: "auto", "tensorrt", "tensorrt-rtx", "openvino" or "aotinductor".
        targets: tensorrt-rtx: GPU architectures to build for, such as "sm89".
        recipe: name or path of an engine recipe; by default the one named after the precision.
        settings: changes to the engine recipe.

    Returns:
        The engine. `ssv2rt.load` takes its folder, `path`.

    Raises:
        UsageError: a setting is out of range, or arguments exclude each other.
        UserError: there is no such run or data, the backend cannot build here, or the engine fails its gate.
    """
    bundle, reasons = build_as_requested(
        BuildRequest(
            run=_text(run),
            precision=precision,
            data=_path(data),
            calibrate_on=tuple(os.fspath(name) for name in calibrate_on),
            max_drop=max_drop,
            backend=backend,
            targets=tuple(targets),
            recipe=_text(recipe),
            overrides=overrides(settings),
        )
    )
    if reasons:
        raise UserError(f"an engine fails the gate and is kept in '{bundle.path}' ({', '.join(reasons)})")
    return bundle


def import_weights(
    source: PathLike, *, network: str | None = None, name: str = "", labels: PathLike | None = None
) -> Path:
    """Makes a run from published weights, as `ssv2rt import` does. It becomes the newest run.

    Args:
        source: name of a published network, or a file of weights.
        network: whose network a file is of, if neither its name nor its weights tell it.
        name: of the run; by default the network's name and the time.
        labels: file with the class names, if they are not the published ones.

    Returns:
        Folder of the run. `ssv2rt.load`, `evaluate` and `build_engine` take it.

    Raises:
        UsageError: there is no such network, or that of a file cannot be told.
        UserError: the run exists; or the weights cannot be downloaded or read, or are not those of the network.
    """
    run, _ = import_as_requested(
        ImportRequest(source=os.fspath(source), network=network, name=name, labels=_path(labels))
    )
    return run.path


def open_dataset(root: PathLike) -> Manifest:
    """Opens a data set, as all commands do; at the first use its videos are indexed.

    Args:
        root: a folder in the layout of SSv2, a folder with one folder per class, a table, an annotation file, or a JSON
            export of Label Studio.

    Returns:
        A manifest, with class names and a row for each clip. `Manifest.split` gives the usable clips of a split.

    Raises:
        UserError: it is no data set.
    """
    return prepare(override_root(Data(), Path(root)))


def overrides(settings: Settings) -> tuple[str, ...]:
    """Settings in the form that --set has them."""
    if isinstance(settings, Mapping):
        return tuple(f"{key}={_toml(value)}" for key, value in settings.items())
    return (settings,) if isinstance(settings, str) else tuple(settings)


def _path(name: PathLike | None) -> Path | None:
    return None if name is None else Path(name)


def _text(name: PathLike | None) -> str | None:
    return None if name is None else os.fspath(name)


def _toml(value: Any) -> str:
    """A value in TOML, which writes numbers, booleans, text and lists as JSON does."""
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)
