"""The report of an engine: how it compares with the network in PyTorch, and the clips on which the two disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ssv2rt.core.run_folders import Run, is_run
from ssv2rt.dataset.classes import for_classes, labeled
from ssv2rt.dataset.prepare import is_here, override_root, prepare
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.inspect import describe_bundle, list_layers
from ssv2rt.engines.onnx_files import read_graph
from ssv2rt.models.weights import load_trained
from ssv2rt.report.html.clips import ShownClip, predict_rows, spread_rows
from ssv2rt.report.html.strips import Strips
from ssv2rt.scoring.predictor import start_in_batches

Section = dict[str, Any]
_PERCENT = ("agreement", "top1_model", "top1_engine", "min_agreement")


def report_of_engine(bundle: Bundle, *, data: Path | None, clips: int) -> dict[str, Any]:
    """The content of an engine's report.

    Args:
        bundle: the engine. With the checkpoint of its run and data, both are run on validation clips.
        data: another data set than the run's own; None for that.
        clips: how many clips are compared at most.

    Raises:
        UserError: the engine does not run here, or `data` is no data set.
    """
    info = bundle.info
    sections: list[Section] = [
        {
            "type": "facts",
            "title": "Engine",
            "rows": [
                ["folder", str(bundle.path)],
                ["network", info.model],
                ["precision", info.precision],
                ["backend", f"{info.backend} {info.backend_version}"],
                ["target", info.target],
                ["classes", len(info.labels)],
                ["clip", f"{info.clip.frames} frames of {info.clip.size}x{info.clip.size}, {info.clip.in_words}"],
                ["batch", f"{info.batch.min} to {info.batch.max} clips, best {info.batch.best}"],
                ["rebuild", info.rebuild],
            ],
        }
    ]
    if info.verification:
        sections.append({"type": "facts", "title": "Comparison when it was built", "rows": _flat(info.verification)})
    if info.settings:
        sections.append({"type": "facts", "title": "Settings and speed", "rows": _flat(info.settings)})
    if info.calibration:
        sections.append({"type": "facts", "title": "Calibration", "rows": _flat(info.calibration)})
    sections += [*_layers(bundle), *_disagreements(bundle, data, clips)]
    return {
        "title": f"Engine {bundle.path.name}",
        "subtitle": f"{info.model}, {info.precision} by {info.backend}",
        "sections": sections,
    }


def _layers(bundle: Bundle) -> list[Section]:
    """The layers of the graph with their precisions and costs, and what TensorRT tells of the engine that it built."""
    kinds = {"layer": "text", "kind": "text", "precision": "text", "parameters": "number", "million MACs": "number"}
    rows = [
        [one.name, one.op, one.precision, one.parameters, None if one.macs is None else one.macs / 1e6, one.share]
        for one in list_layers(read_graph(bundle.onnx_file))
    ]
    section: Section = {
        "type": "table",
        "title": "Layers",
        "note": "Of the ONNX graph that the engine was built from; MACs are of one clip.",
        "columns": [{"name": name, "kind": kind} for name, kind in (kinds | {"share of MACs": "percent"}).items()],
        "rows": rows,
    }
    built = describe_bundle(bundle)["engine_layers"]
    title = "Layers of the finished engine"
    return [section, *([{"type": "facts", "title": title, "rows": _flat(built)}] if built else [])]


def _flat(facts: dict[str, Any], before: str = "") -> list[list[object]]:
    """Nested facts as rows of names and text. What is empty is left out."""
    rows: list[list[object]] = []
    for key, value in facts.items():
        name = before + key.replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, f"{name}, ")
        elif isinstance(value, (list, tuple)) and value:
            text = ", ".join(str(part) for part in value)
            rows.append([name, text if len(text) < 500 else f"{len(value)} values"])
        elif isinstance(value, bool):
            rows.append([name, "yes" if value else "no"])
        elif isinstance(value, (int, float, str)):
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            rows.append([name, f"{text}%" if key in _PERCENT else text])
    return rows


def _disagreements(bundle: Bundle, data: Path | None, clips: int) -> list[Section]:
    title = "Clips on which engine and network disagree"
    run = Run(bundle.path.parent.parent)
    if not is_run(run.path):
        return [
            {"type": "note", "title": title, "note": "There is no checkpoint beside this engine to compare it with."}
        ]
    trained = load_trained(run)
    settings = override_root(trained.recipe.data, data)
    if not data and not is_here(settings):
        return [
            {"type": "note", "title": title, "note": "The data of the run is not here; give --data to compare clips."}
        ]
    split = labeled(
        for_classes(prepare(settings), trained.labels, f"run '{run.path}'").split("validation", settings.max_bad)
    )
    rows, clip = spread_rows(split, clips), bundle.info.clip.one_view()
    runner, batch = load_runner(bundle), bundle.info.batch.best
    device = torch.device("cuda" if bundle.info.on_gpu else "cpu")

    def by_engine(found: torch.Tensor) -> torch.Tensor:
        return torch.cat([wait().logits for wait in start_in_batches(runner, found.to(device), batch)])

    shown = predict_rows(trained.model, split, rows, clip=clip, data=settings, beside=by_engine)
    both = [(one, one.beside) for one in shown if one.beside is not None]
    different = [(one, values) for one, values in both if int(values.argmax()) != one.predicted]
    strips, labels = Strips(), bundle.info.labels
    section: Section = {
        "type": "gallery",
        "title": title,
        "what": "clips",
        "note": f"{len(different)} of {len(both)} validation clips, one view each. The bars are the engine's.",
        "clips": [],
    }
    for one, values in different:
        assert one.probabilities is not None
        note = f"PyTorch in fp32: {labels[one.predicted]} {one.probabilities.max():.1%}"
        engine = ShownClip(one.video, one.label, one.status, values, one.frames)
        section["clips"].append(engine.content(labels, strips, note))
    if not different:
        section = {"type": "note", "title": title, "note": f"None of {len(both)} validation clips, one view each."}
    return [section]
