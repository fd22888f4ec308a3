"""Finds nodes in ONNX graphs."""

from __future__ import annotations

import onnx

from ssv2rt.core.errors import UserError


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that produces each tensor, by name of the tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def first_convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The convolutions that no other convolution feeds, in the order of the graph: one for each pathway of a network.

    Raises:
        UserError: there is none.
    """
    found: list[onnx.NodeProto] = []
    behind: set[str] = set()
    """Tensors that are computed from a convolution."""
    for node in graph.node:
        fed = not behind.isdisjoint(node.input)
        if node.op_type == "Conv" and not fed:
            found.append(node)
        if node.op_type == "Conv" or fed:
            behind.update(node.output)
    if not found:
        raise UserError("the graph has no convolution, and lower precision starts at the first one; take --fp32")
    return found


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or the name of its first output if it has none."""
    return node.name or next((name for name in node.output if name), node.op_type)
