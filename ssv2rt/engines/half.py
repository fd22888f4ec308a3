"""From a graph in fp32 to one in fp16.

Precision lives in the graph, so that every backend, strongly typed TensorRT among them, computes the same network.
Pixels are normalised in fp32 and results leave as fp32, whatever lies between.
Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from ssv2rt.core.errors import UserError

BFLOAT_OPSET = 22
"""The first in which convolutions take bf16."""


def to_half(model: onnx.ModelProto, *, bfloat: bool = False) -> onnx.ModelProto:
    """The same graph with fp16 (or bf16) weights and activations, Q/DQ scales included.

    The first convolution is preceded by a cast to it and each result is followed by one to fp32; what comes before
    the first convolution stays fp32.
    """
    kind = TensorProto.BFLOAT16 if bfloat else TensorProto.FLOAT16
    result = onnx.ModelProto()
    result.CopyFrom(onnx.version_converter.convert_version(model, BFLOAT_OPSET) if bfloat else model)
    graph = result.graph
    del graph.value_info[:]
    first = _first_convolution(graph)
    pixels = _source_of_pixels(graph, first)
    kept = _before(graph, pixels)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor, bfloat))
    for node in graph.node:
        if set(node.output) & kept:
            continue
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t, bfloat))
    _replace_input(graph, pixels, f"{pixels}_half")
    cast = helper.make_node("Cast", [pixels], [f"{pixels}_half"], name="pixels_to_half", to=kind)
    position = next(i for i, node in enumerate(graph.node) if pixels in node.output)
    graph.node.insert(position + 1, cast)
    for end in [value.name for value in graph.output]:
        inside = f"{end}_half"
        for node in graph.node:
            node.output[:] = [inside if name == end else name for name in node.output]
        _replace_input(graph, end, inside)
        graph.node.append(helper.make_node("Cast", [inside], [end], name=f"{end}_to_float", to=TensorProto.FLOAT))
    onnx.checker.check_model(result, full_check=True)
    return result


def label_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Notes the precision in the file's metadata."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, properties | {"precision": precision})
    return model


def _first_convolution(graph: onnx.GraphProto) -> onnx.NodeProto:
    for node in graph.node:
        if node.op_type == "Conv":
            return node
    raise UserError("the graph has no convolution, behind which lower precision begins; take --fp32")


def _source_of_pixels(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> str:
    """The tensor of normalised pixels: what the first convolution reads, before any Q/DQ pair."""
    makers = {name: node for node in graph.node for name in node.output}
    name = convolution.input[0]
    while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = makers[name].input[0]
    return name


def _before(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of `tensor` and of all that it is computed from."""
    makers = {name: node for node in graph.node for name in node.output}
    names, queue = set(), [tensor]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += makers[name].input if name in makers else []
    return names


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == old:
                node.input[number] = new


def _half_tensor(tensor: TensorProto, bfloat: bool) -> TensorProto:
    half = ml_dtypes.bfloat16 if bfloat else np.float16
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(half), tensor.name)
