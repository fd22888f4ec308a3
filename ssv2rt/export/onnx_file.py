"""Exports the graph of an engine as one ONNX file, whose metadata says what it takes and gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.onnx_files import read_graph
from ssv2rt.export.float_input import split_normalization
from ssv2rt.export.onnx_runtime import TOLERANCE, largest_difference, random_clips, run_graph

InputKind = Literal["uint8", "float"]


def export_onnx_file(bundle: Bundle, out: Path, kind: InputKind) -> dict[str, Any]:
    """Writes an engine's graph to a file, after ONNX Runtime has compared it with the engine's own.

    Args:
        bundle: the engine, of any backend.
        out: the .onnx file; a file of that name is replaced.
        kind: of the input. uint8: (N, T, S, S, 3), as decoded; float: (N, 3, T, S, S), normalized.

    Returns:
        Facts to print: what the file takes and gives, and the largest difference that was found.

    Raises:
        UserError: ONNX Runtime cannot run the graph, outputs differ, or the graph has no normalization to remove.
    """
    info = bundle.info
    model = read_graph(bundle.onnx_file)
    clips = random_clips(info)
    expected = run_graph(model, {INPUT: clips})
    facts: dict[str, Any] = {"input": f"uint8 {list(info.input_shape)}, RGB, 0 to 255"}
    if kind == "float":
        split = split_normalization(model, info.clip.frames, info.clip.size)
        (pixels,) = run_graph(split.normalization, {INPUT: clips}).values()
        mean, std = (np.array(values).reshape(1, 3, 1, 1, 1) for values in (split.mean, split.std))
        formula = (clips.transpose(0, 4, 1, 2, 3) / 255 - mean) / std
        apart = max(
            largest_difference({INPUT: pixels}, {INPUT: formula}),
            largest_difference(expected, run_graph(split.network, {INPUT: pixels})),
        )
        model, size = split.network, info.clip.size
        facts["input"] = f"float32 {['batch', 3, info.clip.frames, size, size]}, RGB, (value / 255 - mean) / std"
        facts |= {"mean": [round(value, 6) for value in split.mean], "std": [round(value, 6) for value in split.std]}
    else:
        apart = largest_difference(expected, run_graph(model, {INPUT: clips}))
    if apart > TOLERANCE:
        raise UserError(
            f"the exported graph differs from the engine's by {apart:g}, more than {TOLERANCE:g}; report this"
        )
    facts["outputs"] = {name: ["batch", *values.shape[1:]] for name, values in expected.items()}
    facts |= {"clip": info.clip.model_dump(mode="json"), "labels": list(info.labels), "precision": info.precision}
    stored = {entry.key: entry.value for entry in model.metadata_props}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    helper.set_model_props(model, stored | texts)
    with os_errors_as_user_errors(f"cannot write '{out}'", "choose another --out"), atomic_file(out) as temporary:
        onnx.save(model, temporary)
    shown = {"clip": info.clip.in_words, "labels": f"{len(info.labels)}, in the metadata"}
    return facts | shown | {"largest difference": f"{apart:.3g}"}
