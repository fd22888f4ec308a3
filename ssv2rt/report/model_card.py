"""A model card of a run, in the form of Hugging Face's README.md: a header in YAML, then text in Markdown."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from ssv2rt import __version__
from ssv2rt.core.errors import UsageError
from ssv2rt.core.log import printable
from ssv2rt.core.run_folders import RUNS, Run, is_run
from ssv2rt.engines.find import FoundEngine, engines_of
from ssv2rt.models.weights import WEIGHTS, TrainedModel, load_trained
from ssv2rt.published.catalog import DATA_SETS, IMAGENET, PUBLISHED, class_names
from ssv2rt.published.import_run import RunSource, read_source
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.results import Result, results_of

UNKNOWN = "unknown"
"""What Hugging Face calls a license that nobody has named."""
_DATA_SETS = {"Something-Something V2": "something-something-v2", "Kinetics-400": "kinetics-400"}
"""What data sets are called in a header. Others have no name there, since it would be taken for one on Hugging Face."""
_TRAINING = ("optimizer", "learning_rate", "schedule", "weight_decay", "seed")
_IF_USED = (
    "label_smoothing",
    "mixup",
    "cutmix",
    "ema",
    "freeze_backbone",
    "sampler",
    "class_weights",
    "head_rate",
    "step_epochs",
    "warmup_epochs",
    "clip_norm",
    "precise_bn",
)
_PLAIN = ("shuffle", "none", "never")
"""The settings of `[train]` that a card shows, always or if they are in use, and the values of those that are not."""
_STRENGTH_OF = {"erase_area": "erase", "rand_magnitude": "rand_layers"}
"""Settings of augmentation without effect where another one is 0."""


def model_card(run: Run, license: str | None = None) -> str:
    """The card of a run's best checkpoint.

    Args:
        run: trained or imported.
        license: identifier of the license of weights that were not published by others, such as "apache-2.0".

    Raises:
        UsageError: `license` is no identifier, or the weights have another one.
        UserError: the run has no such checkpoint, or a file of it is damaged.
    """
    trained = load_trained(run)
    source = read_source(run)
    license = _license(run, source, license)
    results = _newest(results_of(run, trained.recipe, trained.epoch), trained, source)
    header = _header(run, trained, source, results, license)
    text = [
        *_introduction(run, trained, source),
        *_use(run, source),
        *_input(trained),
        *(_source(source) if source else _training(run, trained)),
        *_accuracy(source, results),
        *_engines(engines_of(run)),
        *_terms(trained, source, license),
        *_labels(trained.labels),
    ]
    return "\n".join(["---", *header, "---", "", *text, f"*Written by ssv2rt {__version__}.*", ""])


def _license(run: Run, source: RunSource | None, given: str | None) -> str:
    """The identifier for the header."""
    if source and source.published:
        if given is not None:
            published = source.published
            raise UsageError(
                f"--license {given}: the weights of run '{run.name}' are published by {published.publisher} under "
                f"{published.license}; leave --license out"
            )
        return source.published.license.lower()
    license = UNKNOWN if given is None else given.lower()
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", license):
        raise UsageError(
            f"--license {given!r}: give an identifier such as apache-2.0, mit or cc-by-nc-4.0; all are at "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )
    return license


def _newest(results: Sequence[Result], trained: TrainedModel, source: RunSource | None) -> list[tuple[str, Result]]:
    """Each result with the name of its data; of those on the same clips with the same views, the newest."""
    found: dict[tuple[str, str, str], Result] = {}
    for result in results:
        name = _folder(result.data) if result.data else _data_set(trained, source) or "data"
        if result.data and result.data == trained.recipe.data.root:
            name = _data_set(trained, source)
        found.setdefault((name, result.split, views_of(result)), result)
    return [(name, result) for (name, *_), result in found.items()]


def _is_held_out(result: Result) -> bool:
    """Whether a result is on clips that training has not seen."""
    return result.split not in ("train", "all")


def _header(
    run: Run,
    trained: TrainedModel,
    source: RunSource | None,
    results: Sequence[tuple[str, Result]],
    license: str,
) -> Iterator[str]:
    """Lines of YAML."""
    yield f"license: {license}"
    yield "library_name: ssv2rt"
    yield "pipeline_tag: video-classification"
    yield "tags:"
    for tag in ("video-classification", "action-recognition", trained.recipe.model.name):
        yield f"- {tag}"
    if (data_set := _data_set(trained, source)) in _DATA_SETS:
        yield f"datasets:\n- {_DATA_SETS[data_set]}"
    accuracies: list[tuple[str, str, str, float, float | None]] = [
        (name, result.split, ", ".join(_views(result)), result.top1, result.top5)
        for name, result in results
        if _is_held_out(result)
    ]
    published = source.published if source else None
    if published:
        views = "x".join(map(str, published.views))
        accuracies.append((published.data_set, "validation", views, published.top1, published.top5))
    if not accuracies:
        return
    yield "metrics:\n- accuracy"
    yield f"model-index:\n- name: {_quoted(run.name)}\n  results:"
    clips = Counter((name, split) for name, split, *_ in accuracies)
    for number, (name, split, views, *values) in enumerate(accuracies, start=1):
        how = f" (views {views})" if clips[name, split] > 1 else ""
        yield "  - task:\n      type: video-classification\n    dataset:"
        yield f"      name: {_quoted(name)}\n      type: {_DATA_SETS.get(name, 'custom')}\n      split: {split}\n    metrics:"
        for metric, value in zip(("Top-1", "Top-5"), values, strict=True):
            if value is not None:
                yield f"    - type: accuracy\n      name: {_quoted(f'{metric} accuracy{how}')}\n      value: {value:.2f}"
        if published and number == len(accuracies):
            yield f"    source:\n      name: {_quoted(published.publisher)}\n      url: {_quoted(published.about)}"


def _introduction(run: Run, trained: TrainedModel, source: RunSource | None) -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    data_set = _data_set(trained, source)
    yield f"# {_text(run.name)}\n"
    yield (
        f"Action recognition in videos: a `{trained.recipe.model.name}` of {parameters:,} parameters"
        f"{f', trained on {_text(data_set)}' if data_set else ''}, with {len(trained.labels)} classes.\n"
    )


def _use(run: Run, source: RunSource | None) -> Iterator[str]:
    name = shlex.quote(printable(run.name))
    weights = source.published.name if source and source.published else WEIGHTS
    yield "## Use\n"
    if weights == WEIGHTS:
        yield f"With the file `{WEIGHTS}` of this model:\n"
    yield "```sh"
    yield f"ssv2rt import {weights} --name {name}"
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
        yield "- Who published this file, and what it was trained on, is not known.\n"
        return
    yield f"- Published by {published.publisher} ({published.about}): {published.url}"
    yield f"- Paper: {published.paper}"
    if published.note:
        yield f"- {published.note}"
    yield ""


def _training(run: Run, trained: TrainedModel) -> Iterator[str]:
    recipe, settings = trained.recipe, trained.recipe.train
    done = max(
        [trained.epoch, *(int(line["epoch"]) for line in read_metrics(run.metrics_file) if "validation" in line)]
    )
    epochs = (
        f"{done} of {settings.epochs} epochs so far" if done < settings.epochs else f"{done} epoch{'s' * (done > 1)}"
    )
    initial = f"the weights of `{_folder(recipe.model.init)}`" if recipe.model.init else "random weights"
    yield "## Training\n"
    yield f"From {initial}, for {epochs}. These are the weights after epoch {trained.epoch}, the best in validation.\n"
    yield "| setting | value |\n|---|---|"
    for key in _TRAINING:
        yield f"| {key} | {getattr(settings, key)} |"
    accumulated = f" x {settings.accumulate} accumulated" if settings.accumulate > 1 else ""
    yield f"| clips of an optimizer step, on each device | {settings.batch_size}{accumulated} |"
    optional = {key: value for key in _IF_USED if (value := getattr(settings, key)) != 1 or key != "head_rate"}
    augment = recipe.augment.model_dump()
    optional |= {key: value for key, value in augment.items() if augment.get(_STRENGTH_OF.get(key, key))}
    for key, value in optional.items():
        if value and value not in _PLAIN:
            yield f"| {key} | {' to '.join(f'{part:.3g}' for part in value) if isinstance(value, tuple) else value} |"
    yield ""


def _accuracy(source: RunSource | None, results: Sequence[tuple[str, Result]]) -> Iterator[str]:
    published = source and source.published
    measured = [(name, result) for name, result in results if _is_held_out(result)]
    yield "## Accuracy\n"
    if published or measured:
        yield "In percent.\n"
        yield "| data | split | clips | views | top-1 | top-5 | mean class accuracy | measured |"
        yield "|---|---|---:|---:|---:|---:|---:|---|"
    else:
        yield "Not measured.\n"
    for name, result in measured:
        by_class = "" if result.mean_class_accuracy is None else f"{result.mean_class_accuracy:.2f}"
        yield (
            f"| {_text(name)} | {result.split} | {result.clips:,} | {views_of(result)} | {result.top1:.2f} | "
            f"{result.top5:.2f} | {by_class} | {result.date or 'in training'} |"
        )
    if published:
        top5 = "" if published.top5 is None else f"{published.top5:.2f}"
        views = "x".join(map(str, published.views))
        yield f"| {published.data_set} | validation | | {views} | {published.top1:.2f} | {top5} | | by {published.publisher} |"
    yield ""
    seen = [
        f"{result.top1:.2f} on {result.clips:,} clips of {_text(name)} ({result.split})"
        for name, result in results
        if not _is_held_out(result)
    ]
    if seen:
        yield f"On clips that it may have been trained on, which tells nothing about new videos: top-1 {'; '.join(seen)}.\n"


def views_of(result: Result) -> str:
    """The views of a result, and what else was set for it."""
    return ", ".join(map(_text, _views(result)))


def _views(result: Result) -> tuple[str, ...]:
    return (f"{result.views[0]}x{result.views[1]}", *result.settings)


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


def _terms(trained: TrainedModel, source: RunSource | None, license: str) -> Iterator[str]:
    yield "## License\n"
    if source and source.published:
        yield f"{source.published.license}, as {source.published.publisher} publishes the weights.\n"
        return
    if license == UNKNOWN:
        yield "Not chosen yet. `ssv2rt card --license apache-2.0` writes one, here and into the header.\n"
    else:
        yield f"{license}\n"
    if origin := None if source else _origin(trained.recipe.model.init):
        yield f"Training started from weights with a license of their own: {origin}.\n"


def _origin(init: str) -> str:
    """Whose initial weights are, and their license; empty if they are nobody's, or it is not known whose."""
    entry = {**PUBLISHED, **IMAGENET}.get(init)
    if entry:
        return f"{entry.name} of {entry.publisher}, {entry.license}"
    if init and is_run(RUNS / init) and (source := read_source(Run(RUNS / init))) and (published := source.published):
        return f"{published.name} of {published.publisher}, {published.license}"
    return ""


def _labels(labels: Sequence[str]) -> Iterator[str]:
    yield "## Labels\n"
    yield f"<details><summary>{len(labels)} classes, in order</summary>\n"
    yield from (f"{number}. {_text(name)}" for number, name in enumerate(labels))
    yield "\n</details>\n"


def _data_set(trained: TrainedModel, source: RunSource | None) -> str:
    """What the weights were trained on; empty if it is not known."""
    if source:
        return source.published.data_set if source.published else ""
    if trained.recipe.data.synthetic:
        return "synthetic twins"
    known = (title for classes, title in DATA_SETS.items() if class_names(classes) == trained.labels)
    return next(known, _folder(trained.recipe.data.root))


def _folder(path: str) -> str:
    """The last part of a path, since the rest is of this machine."""
    return printable(os.path.basename(os.path.abspath(path)))


def _quoted(words: str) -> str:
    """A string of YAML, which is written as in JSON."""
    return json.dumps(words, ensure_ascii=False)


def _text(words: str) -> str:
    """Text in which no character means anything to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", printable(words))
