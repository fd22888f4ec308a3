"""What engines are built of: the best checkpoint of a run, or an ONNX file made elsewhere.

Letters: N clips, T frames, S size, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ssv2rt.console import say
from ssv2rt.dataset.labels import read_labels
from ssv2rt.engines.bundle import sha256
from ssv2rt.engines.export import INPUT, OPSET, OUTPUT, EngineModel, export_onnx
from ssv2rt.engines.graphs import read_graph
from ssv2rt.errors import UserError
from ssv2rt.models.clipmodel import MEAN, STD, ClipModel
from ssv2rt.models.weights import load_trained
from ssv2rt.recipes import Clip, Data
from ssv2rt.runs import Run


@dataclass(frozen=True)
class Source:
    """A network with all that an engine has to know of it."""

    name: str
    labels: tuple[str, ...]
    clip: Clip
    data: Data
    """How clips are read."""
    sha256: str
    """Of the weights."""
    export: Callable[[Path], None]
    """Writes the fp32 graph."""
    reference: Callable[[torch.Tensor], torch.Tensor] | None
    """uint8 (N, T, S, S, 3) to float32 (N, K), by PyTorch; None where only the graph is known."""
    model: nn.Module | None
    """As `Graph.model`."""
    command: str
    """`ssv2rt build-engine` with what names this source."""


def source_of_run(run: Run) -> Source:
    """The best checkpoint of a run.

    Raises:
        UserError: there is none.
    """
    trained = load_trained(run)
    recipe = trained.recipe
    return replace(
        source_of_model(trained.model, recipe.model.name, trained.labels, recipe.clip),
        data=recipe.data,
        sha256=sha256(trained.path),
        command=f"ssv2rt build-engine {run.name}",
    )


def source_of_model(model: ClipModel, name: str, labels: tuple[str, ...], clip: Clip) -> Source:
    """A network in memory, in evaluation mode."""

    def export(path: Path) -> None:
        say(f"exporting {name} to ONNX")
        export_onnx(model, path, clip=clip, labels=labels)

    return Source(
        name=name,
        labels=labels,
        clip=clip,
        data=Data(),
        sha256="",
        export=export,
        reference=model,
        model=EngineModel(model).eval(),
        command="ssv2rt build-engine",
    )


def source_of_onnx(file: Path, labels: Path) -> Source:
    """A graph made elsewhere.

    It takes uint8 (N, T, S, S, 3), as our own do; or float (N, 3, T, S, S) with ImageNet's mean and spread, as torchvision's
    video networks do when they are exported, and is then given the normalisation that ours have.

    Args:
        file: ONNX with one input, and logits (N, K) as its first output.
        labels: K class names: SSv2's JSON, a JSON list, or a line of text each.

    Raises:
        UserError: the file is no such graph, keeps weights outside its folder, or has another number of classes.
    """
    names = _read_names(labels)
    model = read_graph(file)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"'{file}' has {len(inputs)} inputs; it must take clips and nothing else")
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    if kind == TensorProto.UINT8 and len(shape) == 5 and shape[4] == 3 and shape[2] == shape[3]:
        frames, size = shape[1], shape[2]
    elif kind == TensorProto.FLOAT and len(shape) == 5 and shape[1] == 3 and shape[3] == shape[4]:
        frames, size = shape[2], shape[3]
    else:
        raise UserError(
            f"'{file}' takes {TensorProto.DataType.Name(kind).lower()} {shape}; it must take uint8 [N, T, S, S, 3] or "
            f"float [N, 3, T, S, S]"
        )
    if not (isinstance(frames, int) and isinstance(size, int)):
        raise UserError(f"'{file}' leaves frames or size open: {shape}; export it with only the batch dynamic")
    classes = _shape(graph.output[0])[-1]
    if classes != len(names):
        raise UserError(f"'{file}' gives {classes} classes, and '{labels}' names {len(names)}; give its own labels")
    clip = Clip(frames=frames, size=size)

    def export(path: Path) -> None:
        onnx.save(_as_ours(model, clip, names, normalise=kind == TensorProto.FLOAT), path)

    return Source(
        name=file.stem,
        labels=names,
        clip=clip,
        data=Data(),
        sha256=sha256(file),
        export=export,
        reference=None,
        model=None,
        command=f"ssv2rt build-engine --onnx {file} --labels {labels}",
    )


def _as_ours(model: onnx.ModelProto, clip: Clip, labels: tuple[str, ...], *, normalise: bool) -> onnx.ModelProto:
    """The graph with our names, an open batch, our opset, and uint8 in."""
    if model.opset_import[0].version < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name for tensor in graph.initializer}
    source = next(value for value in graph.input if value.name not in weights)
    _rename(graph, source.name, "pixels" if normalise else INPUT)
    _rename(graph, graph.output[0].name, OUTPUT)
    del graph.value_info[:]
    if normalise:
        for name, values in (("mean", MEAN), ("scale", tuple(1 / value for value in STD))):
            array = np.array(values, np.float32).reshape(1, 3, 1, 1, 1)
            graph.initializer.append(numpy_helper.from_array(array, f"normalise_{name}"))
        nodes = [
            helper.make_node("Cast", [INPUT], ["as_float"], name="as_float", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["as_float"], ["by_colour"], name="by_colour", perm=[0, 4, 1, 2, 3]),
            helper.make_node("Sub", ["by_colour", "normalise_mean"], ["centred"], name="centred"),
            helper.make_node("Mul", ["centred", "normalise_scale"], ["pixels"], name="pixels"),
        ]
        for number, node in enumerate(nodes):
            graph.node.insert(number, node)
    shape: list[int | str | None] = ["batch", clip.frames, clip.size, clip.size, 3]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(labels)]))
    facts = {"labels": json.dumps(labels), "clip": clip.model_dump_json(), "precision": "fp32"}
    helper.set_model_props(result, facts)
    result.producer_name = "ssv2rt"
    onnx.checker.check_model(result, full_check=True)
    return result


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                if name == old:
                    names[number] = new


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the labels '{path}': {error}") from None
    try:
        value = json.loads(text)
    except ValueError:
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return read_labels(path)
