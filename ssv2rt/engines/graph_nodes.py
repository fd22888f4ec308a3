"""Finds nodes in ONNX graphs."""

from __future__ import annotations

import onnx

from ssv2rt.core.errors import UserError


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that produces each tensor, by name of the tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def first_convolution(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The first convolution, in the order of the graph.

    Raises:
        UserError: there is none.
    """
    for node in graph.node:
        if node.op_type == "Conv":
            return node
    raise UserError("the graph has no convolution, and lower precision starts at the first one; take --fp32")


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or the name of its first output if it has none."""
    return node.name or next((name for name in node.output if name), node.op_type)
