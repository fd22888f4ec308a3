"""A way round a fault of OpenVINO (2026.4), which computes convolutions of quantized concatenations wrong.

Where a signed 8-bit tensor is a concatenation, or a ReLU of one, OpenVINO quantizes the parts instead of the whole, forgets
the scale, and so rounds activations to whole numbers. Unsigned 8-bit tensors are right, and so is what has another operator
between concatenation and quantization. Any network with branches can be hit, such as I3D and SlowFast.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ssv2rt.engines.graph_nodes import producers
from ssv2rt.engines.quantization import drop_unused

_KEEP_SIGN = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax"),
    *("Concat", "Split", "Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear", "Identity"),
)
"""Operators whose result is not negative if no input is. The scales of the quantized ones are never negative."""


def protect_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Changes quantized concatenations, in place, so that OpenVINO computes them right. The network stays the same.

    Those without negative values become unsigned, with the same scale. Before the others, there will be an identity that
    OpenVINO does not move the quantization across.
    """
    graph = model.graph
    producer_of = producers(graph)
    signed = {tensor.name for tensor in graph.initializer if numpy_helper.to_array(tensor).dtype == np.int8}
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[2] not in signed:
            continue
        if not _is_concatenation(node.input[0], producer_of):
            continue
        if _is_never_negative(node.input[0], producer_of):
            zero = f"{node.output[0]}_unsigned"
            graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), zero))
            for user in (user for user in graph.node if user is node or node.output[0] in user.input):
                user.input[2] = zero
        else:
            same = f"{node.output[0]}_same"
            identity = helper.make_node("LeakyRelu", [node.input[0]], [same], alpha=1.0)
            graph.node.insert(list(graph.node).index(node), identity)
            node.input[0] = same
    drop_unused(graph)
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _is_concatenation(name: str, producer_of: dict[str, onnx.NodeProto]) -> bool:
    while name in producer_of and producer_of[name].op_type in ("Relu", "Identity"):
        name = producer_of[name].input[0]
    return name in producer_of and producer_of[name].op_type == "Concat"


def _is_never_negative(name: str, producer_of: dict[str, onnx.NodeProto]) -> bool:
    node = producer_of.get(name)
    if node is None or node.op_type not in _KEEP_SIGN:
        return node is not None and node.op_type in ("Relu", "Sigmoid")
    if node.op_type == "Pad" and any(node.input[2:3]):
        return False  # it may pad with anything
    parts = node.input if node.op_type == "Concat" else node.input[:1]
    return all(_is_never_negative(part, producer_of) for part in parts)
