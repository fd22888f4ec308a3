"""Converts an fp32 ONNX graph to fp16 or bf16.

The precision is part of the graph, so that every backend (including strongly typed TensorRT networks) computes the same
network. Normalization of the pixels stays in fp32, and the outputs are cast back to fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssv2rt.engines.graph_nodes import first_convolutions, producers
from ssv2rt.engines.onnx_files import convert_opset

BF16_OPSET = 22
"""The first opset in which Conv supports bf16."""


def convert_to_half(model: onnx.ModelProto, *, bfloat16: bool = False) -> onnx.ModelProto:
    """Returns a copy of a graph with weights, activations and Q/DQ scales in fp16 (or bf16).

    All that comes before the first convolution of each pathway stays fp32. A cast to half precision is inserted before these
    convolutions, and a cast to fp32 before each output of the graph.

    Raises:
        UserError: the graph has no convolution.
    """
    kind = TensorProto.BFLOAT16 if bfloat16 else TensorProto.FLOAT16
    result = onnx.ModelProto()
    result.CopyFrom(convert_opset(model, BF16_OPSET) if bfloat16 else model)
    graph = result.graph
    del graph.value_info[:]
    pixels = {_normalized_pixels(graph, first): None for first in first_convolutions(graph)}
    kept = _upstream_tensors(graph, pixels)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor, bfloat16))
    for node in graph.node:
        if set(node.output) & kept:
            continue
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t, bfloat16))
    lower = [node for node in graph.node if not set(node.output) & kept]
    # A graph in half precision has such casts already, with the same names.
    taken = {name for node in graph.node for name in (node.name, *node.output)}

    def new(name: str) -> str:
        name = next(free for free in chain((name,), (f"{name}_{n}" for n in count(1))) if free not in taken)
        taken.add(name)
        return name

    for normalized in pixels:
        in_half = new(f"{normalized}_half")
        _replace_input(lower, normalized, in_half)
        cast = helper.make_node("Cast", [normalized], [in_half], name=new("pixels_to_half"), to=kind)
        position = next(i for i, node in enumerate(graph.node) if normalized in node.output)
        graph.node.insert(position + 1, cast)
    for end in [value.name for value in graph.output]:
        inside = new(f"{end}_half")
        for node in graph.node:
            node.output[:] = [inside if name == end else name for name in node.output]
        _replace_input(graph.node, end, inside)
        graph.node.append(helper.make_node("Cast", [inside], [end], name=new(f"{end}_to_float"), to=TensorProto.FLOAT))
    onnx.checker.check_model(result, full_check=True)
    return result


def set_precision_metadata(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Stores the precision in the model's metadata, in place."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, properties | {"precision": precision})
    return model


def _normalized_pixels(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> str:
    """Name of the tensor of normalized pixels: the input of the first convolution, or of the Q/DQ pair before it."""
    producer_of = producers(graph)
    name = convolution.input[0]
    while name in producer_of and producer_of[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = producer_of[name].input[0]
    return name


def _upstream_tensors(graph: onnx.GraphProto, ends: Iterable[str]) -> set[str]:
    """Names of tensors and of all tensors that they are computed from."""
    producer_of = producers(graph)
    names, queue = set(), list(ends)
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += producer_of[name].input if name in producer_of else []
    return names


def _replace_input(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for number, name in enumerate(node.input):
            if name == old:
                node.input[number] = new


def _half_tensor(tensor: TensorProto, bfloat16: bool) -> TensorProto:
    half = ml_dtypes.bfloat16 if bfloat16 else np.float16
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(half), tensor.name)
