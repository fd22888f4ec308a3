"""A model card of a run, in the form of Hugging Face's README.md: a header in YAML, then text in Markdown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ssv2rt import __version__
from ssv2rt.core.log import printable
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.engines.find import FoundEngine, engines_of
from ssv2rt.models.weights import TrainedModel, load_trained
from ssv2rt.published.import_run import RunSource, read_source
from ssv2rt.training.results import Result, results_of

_DATA_SETS = {"Something-Something V2": "something-something-v2", "Kinetics-400": "kinetics-400"}
_TRAINING = (
    "epochs",
    "optimizer",
    "learning_rate",
    "head_rate",
    "schedule",
    "step_epochs",
    "warmup_epochs",
    "weight_decay",
    "clip_norm",
    "precise_bn",
    "label_smoothing",
    "mixup",
    "cutmix",
    "ema",
    "freeze_backbone",
    "seed",
)
"""The settings of `[train]` that a card shows, unless they are off."""
_STRENGTH_OF = {"erase_area": "erase", "rand_magnitude": "rand_layers"}
"""Settings of augmentation without effect where another one is 0."""


def model_card(run: Run) -> str:
    """The card of a run's best checkpoint.

    Raises:
        UserError: the run has no such checkpoint, or a file of it is damaged.
    """
    trained = load_trained(run)
    source = read_source(run)
    results = results_of(run, trained.recipe, trained.epoch)
    header = _header(run, trained, source, results)
    text = [
        *_introduction(run, trained),
        *_use(run, source),
        *_input(trained),
        *(_source(source) if source else _training(trained)),
        *_accuracy(source, results),
        *_engines(engines_of(run)),
        *_labels(trained.labels),
    ]
    return "\n".join(["---", *header, "---", "", *text, f"*Written by ssv2rt {__version__}.*", ""])


def _header(run: Run, trained: TrainedModel, source: RunSource | None, results: Sequence[Result]) -> Iterator[str]:
    """Lines of YAML. Strings are written as in JSON, which YAML can read."""
    data_set = _data_set(trained, source)
    if source and source.published:
        yield f"license: {json.dumps(source.published.license.lower())}"
    yield "library_name: ssv2rt"
    yield "pipeline_tag: video-classification"
    yield "tags:"
    for tag in ("video-classification", "action-recognition", trained.recipe.model.name):
        yield f"- {tag}"
    if data_set:
        yield f"datasets:\n- {_DATA_SETS.get(data_set, _slug(data_set))}"
    if results:
        yield "metrics:\n- accuracy"
        yield f"model-index:\n- name: {json.dumps(run.name)}\n  results:"
        for result in results:
            yield "  - task:\n      type: video-classification\n    dataset:"
            name = _name_of(result, trained, source)
            yield f"      name: {json.dumps(name)}\n      type: {_slug(name)}\n      split: {result.split}"
            yield "    metrics:"
            for metric, value in (("Top-1", result.top1), ("Top-5", result.top5)):
                yield f"    - type: accuracy\n      name: {metric} accuracy\n      value: {value:.2f}"


def _introduction(run: Run, trained: TrainedModel) -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    yield f"# {_text(run.name)}\n"
    yield (
        f"Action recognition in videos: a `{trained.recipe.model.name}` of {parameters:,} parameters, with "
        f"{len(trained.labels)} classes.\n"
    )


def _use(run: Run, source: RunSource | None) -> Iterator[str]:
    name = shlex.quote(printable(run.name))
    yield "## Use\n\n```sh"
    if source and source.published:
        yield f"ssv2rt import {source.published.name} --name {name}"
    yield f"ssv2rt build-engine {name} --fp16"
    yield f"ssv2rt score videos/ --run {name} --out preds.csv\n```\n"


def _input(trained: TrainedModel) -> Iterator[str]:
    clip, normalise = trained.recipe.clip, trained.model.normalise
    mean = ", ".join(f"{value / 255:.4g}" for value in normalise.mean.flatten().tolist())
    std = ", ".join(f"{1 / value / 255:.4g}" for value in normalise.scale.flatten().tolist())
    yield "## Input\n"
    shape = f"(N, {clip.frames}, {clip.size}, {clip.size}, 3)"
    yield f"- {clip.frames} frames of {clip.size}x{clip.size} pixels, RGB, as uint8 {shape}"
    yield f"- {clip.in_words}"
    yield f"- The network normalizes pixels itself: values from 0 to 1, mean {mean}, standard deviation {std}\n"


def _source(source: RunSource) -> Iterator[str]:
    published = source.published
    yield "## Source\n"
    yield f"- File: `{printable(source.file)}`, SHA-256 `{source.sha256}`, imported on {source.imported}"
    if not published:
        yield "- The publisher and the license of this file are not known.\n"
        return
    yield f"- Published by {published.publisher} ({published.about}): {published.url}"
    yield f"- Paper: {published.paper}"
    yield f"- License: {published.license}"
    if published.note:
        yield f"- {published.note}"
    yield ""


def _training(trained: TrainedModel) -> Iterator[str]:
    recipe = trained.recipe
    yield "## Training\n"
    initial = f"the weights of `{printable(recipe.model.init)}`" if recipe.model.init else "random weights"
    yield f"{trained.epoch} of {recipe.train.epochs} epochs, from {initial}.\n"
    yield "| setting | value |\n|---|---|"
    for key in _TRAINING:
        if (value := getattr(recipe.train, key)) or key == "seed":
            yield f"| {key} | {list(value) if isinstance(value, tuple) else value} |"
    yield f"| clips of a batch | {recipe.train.batch_size} x {recipe.train.accumulate} accumulated |"
    yield f"| augmentation | {', '.join(f'{key} {value}' for key, value in _changed(recipe))} |\n"


def _changed(recipe: Recipe) -> list[tuple[str, Any]]:
    """The settings of augmentation that are in use."""
    values = recipe.augment.model_dump()
    return [(key, value) for key, value in values.items() if value and values.get(_STRENGTH_OF.get(key, key))]


def _accuracy(source: RunSource | None, results: Sequence[Result]) -> Iterator[str]:
    published = source and source.published
    yield "## Accuracy\n"
    if not published and not results:
        yield "Not measured.\n"
        return
    yield "| | clips | views | top-1 | top-5 | mean class accuracy |\n|---|---:|---:|---:|---:|---:|"
    for result in results:
        where = f"{_text(_folder(result.data))}, {result.split}" if result.data else result.split
        by_class = "" if result.mean_class_accuracy is None else f"{result.mean_class_accuracy:.2f}"
        when = f"measured on {result.date}" if result.date else "measured in training"
        yield (
            f"| {where}, {when} | {result.clips:,} | {views_of(result)} | {result.top1:.2f} | "
            f"{result.top5:.2f} | {by_class} |"
        )
    if published:
        top5 = "" if published.top5 is None else f"{published.top5:.2f}"
        views = "x".join(map(str, published.views))
        yield f"| {published.data_set}, validation, as published | | {views} | {published.top1:.2f} | {top5} | |"
    yield ""


def views_of(result: Result) -> str:
    """The views of a result, and what else was set for it."""
    return ", ".join((f"{result.views[0]}x{result.views[1]}", *map(_text, result.settings)))


def _engines(engines: Sequence[FoundEngine]) -> Iterator[str]:
    found = [(engine.name, engine.info) for engine in engines if engine.info]
    if not found:
        return
    yield "## Engines\n"
    yield "| engine | backend | for | top-1 | agreement with fp32 |\n|---|---|---|---:|---:|"
    for name, info in found:
        figures = info.verification or {}
        top1 = figures.get("top1_engine")
        agreement = f"{figures['agreement']:.2f}" if "agreement" in figures else ""
        yield (
            f"| {_text(name)} | {info.backend} {info.backend_version} | {_text(info.target)} | "
            f"{'' if top1 is None else f'{top1:.2f}'} | {agreement} |"
        )
    yield "\nPercent, on the clips that the engine was compared on when it was built.\n"


def _labels(labels: Sequence[str]) -> Iterator[str]:
    yield "## Labels\n"
    yield f"<details><summary>{len(labels)} classes, in order</summary>\n"
    yield from (f"{number}. {_text(name)}" for number, name in enumerate(labels))
    yield "\n</details>\n"


def _data_set(trained: TrainedModel, source: RunSource | None) -> str:
    """What the weights were trained on; empty if it is not known."""
    if source:
        return source.published.data_set if source.published else ""
    data = trained.recipe.data
    return "synthetic twins" if data.synthetic else _folder(data.root)


def _name_of(result: Result, trained: TrainedModel, source: RunSource | None) -> str:
    """What a result was measured on."""
    return _folder(result.data) or _data_set(trained, source) or "data"


def _folder(path: str) -> str:
    """The last part of a path, since the rest is of this machine."""
    return path.rstrip("/").rpartition("/")[2]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data"


def _text(words: str) -> str:
    """Text in which no character means anything to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", printable(words))
