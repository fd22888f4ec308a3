"""Brings a graph of another program into the form that `export_onnx` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from ssv2rt import __version__
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip
from ssv2rt.engines.export import EMBEDDING, INPUT, IR_VERSION, OPSET, OUTPUT, PRODUCER
from ssv2rt.engines.normalization import Colors, Normalization
from ssv2rt.engines.onnx_files import convert_opset, opset_of


@dataclass(frozen=True)
class GraphInput:
    """The input of a graph from elsewhere."""

    name: str
    channels: int
    """Axis of the colors: 4 for uint8 (N, T, S, S, 3), 1 for float (N, 3, T, S, S), 2 for float (N, T, 3, S, S)."""
    frames: int
    size: int

    @property
    def is_float(self) -> bool:
        return self.channels != 4


def to_project_graph(
    model: onnx.ModelProto,
    source: GraphInput,
    clip: Clip,
    labels: tuple[str, ...],
    widths: dict[str, int],
    pixels: Normalization | None,
    colors: Colors,
) -> onnx.ModelProto:
    """Returns the graph in the form that `export_onnx` writes.

    It gets the names, opset, dynamic batch, uint8 input and metadata of this package, and only the outputs in `widths`.

    Args:
        model: a graph from elsewhere; it is not changed.
        source: its input.
        clip: how clips are read.
        labels: class names.
        widths: by name of the graph, the size of the logits and, if there is one, of the embedding, in this order.
        pixels: how a float input is normalized; None for a uint8 input.
        colors: their order in a float input.

    Raises:
        UserError: the opset cannot be converted, or ONNX finds a contradiction in the graph.
    """
    if opset_of(model) < OPSET:
        model = convert_opset(model, OPSET)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    ends = (INPUT, "pixels") if pixels else (INPUT,)
    names = dict(zip((source.name, *widths), (ends[-1], OUTPUT, EMBEDDING), strict=False))
    _rename(graph, {name: f"{name}_theirs" for name in (*ends, OUTPUT, EMBEDDING) if name not in names} | names)
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"  # the quantizer excludes nodes by name
    del graph.value_info[:]
    if pixels:
        for number, node in enumerate(_normalizing_nodes(graph, pixels, colors, source.channels)):
            graph.node.insert(number, node)
    shape: list[int | str | None] = ["batch", clip.frames, clip.size, clip.size, 3]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    del graph.output[:]
    for name, width in widths.items():
        graph.output.append(helper.make_tensor_value_info(names[name], TensorProto.FLOAT, ["batch", width]))
    facts = {"labels": json.dumps(labels), "clip": clip.model_dump_json(), "precision": "fp32"}
    helper.set_model_props(result, facts)
    result.producer_name, result.producer_version = PRODUCER, __version__
    result.ir_version = max(result.ir_version, IR_VERSION)
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the graph contradicts itself ({reason}); export it again, with another exporter") from None
    return result


def _normalizing_nodes(
    graph: onnx.GraphProto, pixels: Normalization, colors: Colors, channels: int
) -> list[onnx.NodeProto]:
    """The nodes from our input to the tensor "pixels", whose colors are on the axis `channels`. Adds their constants."""
    order = np.array([0, 1, 2] if colors == "rgb" else [2, 1, 0])
    shape = [3 if axis == channels else 1 for axis in range(5)]
    mean, std = np.array(pixels.mean)[order] * pixels.scale, np.array(pixels.std)[order] * pixels.scale
    for name, values in (("mean", mean), ("scale", 1 / std)):
        array = values.astype(np.float32).reshape(shape)
        graph.initializer.append(numpy_helper.from_array(array, f"normalise.{name}"))
    perm = [0, 1, 2, 3]
    perm.insert(channels, 4)
    steps: list[tuple[str, str, list[str], dict[str, Any]]] = [("cast", "Cast", [], {"to": TensorProto.FLOAT})]
    if colors == "bgr":
        graph.initializer.append(numpy_helper.from_array(order, "normalise.order"))
        steps.append(("colors", "Gather", ["normalise.order"], {"axis": 4}))
    steps += [
        ("transpose", "Transpose", [], {"perm": perm}),
        ("sub", "Sub", ["normalise.mean"], {}),
        ("mul", "Mul", ["normalise.scale"], {}),
    ]
    nodes, before = [], INPUT
    for name, operator, constants, attributes in steps:
        after = "pixels" if name == "mul" else f"normalise.{name}"
        nodes.append(helper.make_node(operator, [before, *constants], [after], name=f"normalise.{name}", **attributes))
        before = after
    return nodes


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Renames tensors simultaneously, so that names can be swapped."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
