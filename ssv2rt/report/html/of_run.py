"""The report of a run: curves, classes, confusion, clips with their predictions, problems of the data, settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.classes import for_classes, labeled
from ssv2rt.dataset.labels import NO_MIRROR, mirrored_labels
from ssv2rt.dataset.manifest import SCHEMA, Manifest
from ssv2rt.dataset.prepare import is_here, override_root, prepare
from ssv2rt.dataset.quarantine import quarantine
from ssv2rt.models.weights import TrainedModel, load_trained
from ssv2rt.published.import_run import read_source
from ssv2rt.report.html.clips import ShownClip, predict_rows, spread_rows
from ssv2rt.report.html.strips import Strips
from ssv2rt.report.plots import learning_rates, of_epochs, placed
from ssv2rt.training.confusion import confused_pairs, per_class_results, read_confusion
from ssv2rt.training.evaluate import Evaluation, mean_class_accuracy, top5_says_something
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.temporal_order import twin_pairs

logger = logging.getLogger(__name__)

Section = dict[str, Any]
_PAIRS, _CLIPS_OF_PAIR, _PROBLEMS, _MOST_RATES = 8, 4, 200, 400


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that a report is to show in place of the validation of the best epoch."""

    result: Evaluation
    split: str
    """train, validation, test or all."""
    checkpoint: str
    """best or last."""
    recipe: Recipe
    """By which its clips were read."""


def report_of_run(
    run: Run, *, data: Path | None, clips: int, explain: int, evaluated: Evaluated | None = None
) -> dict[str, Any]:
    """The content of a run's report.

    Args:
        run: it has a best checkpoint.
        data: another data set than the run's own; None for that.
        clips: how many clips are predicted and shown at most.
        explain: for how many of them Grad-CAM is computed.
        evaluated: its figures and the clips of its split are shown; None for the validation of the best epoch.

    Raises:
        UserError: the run has no checkpoint, or `data` is no data set or has none of its classes.
    """
    trained = load_trained(run, evaluated.checkpoint if evaluated else "best")
    if evaluated:
        trained = replace(trained, recipe=evaluated.recipe)
    split = evaluated.split if evaluated else "validation"
    lines = read_metrics(run.metrics_file)
    matrix = evaluated.result.confusion if evaluated else _confusion(run, trained.labels)
    manifest = _manifest(run, trained, data)
    figures = evaluated.result.as_dict() if evaluated else _best_validation(lines, trained.epoch)
    facts = _facts(run, trained, figures, matrix, data, split)
    sections: list[Section] = [{"type": "facts", "title": "Result", "rows": facts}]
    if charts := _charts(lines, trained.recipe.train, len(trained.labels)):
        sections.append({"type": "curves", "title": "Curves", "x": "epoch", "charts": charts})
    if matrix is not None:
        sections += classes_sections(matrix, trained.labels)
    if manifest is None:
        root = trained.recipe.data.root
        why = f"The data of the run is not here ('{root}')" if root else "The run has no data of its own"
        sections.append({"type": "note", "title": "Clips", "note": f"{why}, so no clips are shown; give --data."})
    else:
        sections += _clips(trained, manifest, matrix, split_name=split, clips=clips, explain=explain)
        sections += _problems(manifest)
    sections += _settings(run)
    return {
        "title": f"Run {run.name}",
        "subtitle": f"{trained.recipe.model.name}, {len(trained.labels)} classes",
        "sections": sections,
    }


def _confusion(run: Run, labels: Sequence[str]) -> np.ndarray | None:
    try:
        return read_confusion(run.confusion_file, labels)
    except (OSError, ValueError) as error:
        if not run.source_file.is_file():  # imported runs have none before they are evaluated
            logger.warning(f"run '{run.path}' has no confusion matrix, so the report has none: {error}")
        return None


def _manifest(run: Run, trained: TrainedModel, data: Path | None) -> Manifest | None:
    settings = override_root(trained.recipe.data, data)
    if not data and not is_here(settings):
        return None
    return for_classes(prepare(settings, SCHEMA.names), trained.labels, f"run '{run.path}'")


def _best_validation(lines: Sequence[Mapping[str, Any]], epoch: int) -> Mapping[str, Any]:
    """The last validation of an epoch in the log; empty if there is none."""
    found = [line["validation"] for line in of_epochs(lines) if line["epoch"] == epoch]
    return found[-1] if found else {}


def _facts(
    run: Run,
    trained: TrainedModel,
    figures: Mapping[str, Any],
    matrix: np.ndarray | None,
    data: Path | None,
    split: str,
) -> list[list[object]]:
    recipe = trained.recipe
    rows: list[list[object]] = [["run", str(run.path)], ["network", recipe.model.name]]
    source = read_source(run)
    if source is None:
        rows.append(["epoch", trained.epoch])
    elif published := source.published:
        rows.append(["weights", f"{published.name}, published by {published.publisher}, {published.license}"])
        rows.append(["top-1, published", f"{published.top1:.2f}% on {published.data_set}"])
    else:
        rows.append(["weights", source.file])
    if figures:
        rows.append(["top-1", f"{figures['top1']:.2f}%"])
        if top5_says_something(len(trained.labels)):
            rows.append(["top-5", f"{figures['top5']:.2f}%"])
    if matrix is not None:
        rows += [
            ["mean class accuracy", f"{mean_class_accuracy(matrix):.2f}%"],
            [_clips_of(split), f"{int(matrix.sum()):,}"],
        ]
    rows += [["clip", f"{recipe.clip.frames} frames of {recipe.clip.size}x{recipe.clip.size}, {recipe.clip.in_words}"]]
    if where := str(data or "") or recipe.data.root or ("synthetic" if recipe.data.synthetic else ""):
        rows.append(["data", where])
    return rows


def _clips_of(split: str) -> str:
    return "clips" if split == "all" else f"{split} clips"


def _charts(lines: Sequence[Mapping[str, Any]], settings: Train, classes: int) -> list[dict[str, object]]:
    lines = placed(lines)
    epochs = of_epochs(lines)
    if not epochs:
        return []
    per_epoch = max((line["update"] / line["epoch"] for line in epochs if line["epoch"]), default=1.0)
    at, rates = learning_rates(lines, settings, per_epoch)

    def series(name: str, points: list[list[float]]) -> dict[str, object]:
        return {"name": name, "points": points}

    def of_training(key: str) -> list[list[float]]:
        return [[line["epoch"], line[key]] for line in epochs]

    def of_validation(key: str) -> list[list[float]]:
        return [[line["epoch"], line["validation"][key]] for line in epochs]

    top5 = [series("validation, top-5", of_validation("top5"))] if top5_says_something(classes) else []
    charts: list[dict[str, object]] = [
        {
            "title": "Loss",
            "unit": "nats per clip",
            "series": [series("training", of_training("train_loss")), series("validation", of_validation("loss"))],
        },
        {
            "title": "Accuracy",
            "unit": "percent",
            "from_zero": True,
            "series": [
                series("training, top-1", of_training("train_top1")),
                series("validation, top-1", of_validation("top1")),
                *top5,
            ],
        },
    ]
    if len(at):
        points = np.stack([(at + 1) / per_epoch, rates], 1)[:: max(1, -(-len(at) // _MOST_RATES))].tolist()
        charts.append(
            {"title": "Learning rate", "unit": "", "from_zero": True, "series": [series("learning rate", points)]}
        )
    return charts


def classes_sections(matrix: np.ndarray, labels: Sequence[str]) -> list[Section]:
    """Tables of the classes and of what is confused, and the confusion matrix."""
    results = per_class_results(matrix, labels)
    sections: list[Section] = [
        {
            "type": "table",
            "title": "Classes",
            "note": "The least accurate first. A click on a column's head sorts by it.",
            "columns": [
                {"name": "class", "kind": "text"},
                {"name": "clips", "kind": "number"},
                {"name": "accuracy", "kind": "percent"},
                {"name": "most often taken for", "kind": "text"},
                {"name": "clips so taken", "kind": "number"},
            ],
            "rows": [[r.label, r.clips, r.recall / 100, r.confused_with, r.confused_clips] for r in results],
        },
        {"type": "confusion", "title": "Confusion matrix", "labels": list(labels), "matrix": matrix.tolist()},
    ]
    if opposites := _opposites(matrix, labels):
        sections.append(
            {
                "type": "table",
                "title": "Left and right told apart",
                "note": "Pairs of classes that differ only in left and right. Clips that are predicted as a third class do "
                "not count.",
                "columns": [
                    {"name": "class", "kind": "text"},
                    {"name": "opposite", "kind": "text"},
                    {"name": "clips", "kind": "number"},
                    {"name": "told apart", "kind": "percent"},
                ],
                "rows": opposites,
            }
        )
    return sections


def _opposites(matrix: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str, int, float]]:
    rows: list[tuple[str, str, int, float]] = []
    for first, second in enumerate(mirrored_labels(tuple(labels)).tolist()):
        if second == NO_MIRROR or second <= first:
            continue
        block = matrix[np.ix_([first, second], [first, second])]
        if block.sum():
            rows.append((labels[first], labels[second], int(block.sum()), float(block.trace() / block.sum())))
    return sorted(rows, key=lambda row: row[3])


def _clips(
    trained: TrainedModel,
    manifest: Manifest,
    matrix: np.ndarray | None,
    *,
    split_name: str,
    clips: int,
    explain: int,
) -> list[Section]:
    recipe, labels, strips = trained.recipe, trained.labels, Strips()
    split = labeled(manifest.split(split_name, recipe.data.max_bad))
    rows = spread_rows(split, clips)
    shown = predict_rows(trained.model, split, rows, clip=recipe.clip, data=recipe.data, explain=explain)
    chosen = (
        f"{len(rows):,} of {len(split):,} {_clips_of(split_name)}"
        if len(rows) < len(split)
        else f"All {len(split):,} {_clips_of(split_name)}"
    )
    how = ", spread evenly over the classes" if len(rows) < len(split) else ""
    shown.sort(key=lambda one: -one.surprise)
    sections: list[Section] = []
    if pairs := _pairs(shown, matrix, labels, strips):
        sections.append({"type": "gallery", "title": "Most confused pairs", "what": "clips", **pairs})
    explained = (
        f" The {explain} first have an overlay of what speaks for the predicted class (Grad-CAM)." if explain else ""
    )
    sections.append(
        {
            "type": "gallery",
            "title": "Clips",
            "what": "clips",
            "note": f"{chosen}{how}, as the network saw them: confident mistakes first, then right ones, the least sure "
            f"first.{explained}",
            "clips": [one.content(labels, strips) for one in shown],
        }
    )
    if strips.refused:
        sections[-1]["note"] += f" The last {strips.refused} have no pictures, to keep the file small."
    if twins := _twins(split, shown):
        sections.append(twins)
    return sections


def _pairs(
    shown: Sequence[ShownClip], matrix: np.ndarray | None, labels: tuple[str, ...], strips: Strips
) -> Section | None:
    if matrix is None:
        return None
    clips = []
    for pair in confused_pairs(matrix, labels, _PAIRS):
        numbers = {labels.index(pair.first), labels.index(pair.second)}
        found = [
            one
            for one in shown
            if one.probabilities is not None and one.kind == "wrong" and {one.label, one.predicted} == numbers
        ]
        clips += [
            one.content(labels, strips) | {"kind": f"{pair.first} / {pair.second}"} for one in found[:_CLIPS_OF_PAIR]
        ]
    return {"clips": clips, "note": "Mistakes of the pairs of classes that are confused most often."} if clips else None


def _twins(split: Any, shown: Sequence[ShownClip]) -> Section | None:
    """How many pairs of clips with the same frames in opposite order are both right."""
    by_id = {Path(one.video).stem: one for one in shown if one.probabilities is not None}
    pairs = [(by_id[a], by_id[b]) for a, b in twin_pairs(split) if a in by_id and b in by_id]
    if not pairs:
        return None
    both = sum(one.kind == two.kind == "right" for one, two in pairs)
    return {
        "type": "facts",
        "title": "Twins",
        "note": "Pairs of clips with the same frames in opposite order, whose labels are opposite.",
        "rows": [["pairs shown here", len(pairs)], ["both right", f"{both} ({100 * both / len(pairs):.1f}%)"]],
    }


def _problems(manifest: Manifest) -> list[Section]:
    table = quarantine(manifest)
    rows = [
        [row["path"], row["split"], row["label"], row["status"], row["reason"]]
        for row in table.slice(0, _PROBLEMS).to_pylist()
    ]
    note = f"{len(table):,} clips are unusable or suspicious" + (
        f"; the first {_PROBLEMS} are listed." if len(table) > len(rows) else "."
    )
    return [
        {
            "type": "table",
            "title": "Problems of the data",
            "note": note,
            "columns": [{"name": name, "kind": "text"} for name in ("video", "split", "class", "status", "reason")],
            "rows": rows,
        }
    ]


def _settings(run: Run) -> list[Section]:
    sections: list[Section] = [{"type": "code", "title": "Recipe", "text": run.recipe_file.read_text("utf-8")}]
    file = run.path / "environment.json"
    if file.is_file():  # a run of imported weights has none
        sections.append({"type": "code", "title": "Environment", "text": file.read_text("utf-8", errors="replace")})
    return sections
