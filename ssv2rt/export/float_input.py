"""Removes the normalization at the beginning of an engine's graph, so that it takes float clips that are normalized already.

    before      uint8 (N, T, S, S, 3) -> Cast, Transpose, Sub, Mul -> float (N, 3, T, S, S) -> network
    after                                                             float (N, 3, T, S, S) -> network

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssv2rt.core.errors import UserError
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.graph_nodes import producers

_CHANNELS_LAST, _CHANNELS_FIRST = (0, 1, 2, 3, 4), (0, 4, 1, 2, 3)
_PIXELS = "pixels"
"""What an imported network takes, where its normalization was added to its graph."""


@dataclass(frozen=True)
class Split:
    """A graph that was cut in two behind its normalization."""

    normalization: onnx.ModelProto
    """uint8 (N, T, S, S, 3) to float32 (N, 3, T, S, S)."""
    network: onnx.ModelProto
    """float32 (N, 3, T, S, S) to what the whole graph gives. Its input has the name of the whole graph's."""
    mean: tuple[float, ...]
    """This and `std`: the normalization is (value / 255 - mean) / std, for red, green and blue."""
    std: tuple[float, ...]


def split_normalization(model: onnx.ModelProto, frames: int, size: int) -> Split:
    """Cuts a graph of an engine behind its normalization.

    Args:
        model: it takes `frames`, uint8 (N, T, S, S, 3). It is not changed.
        frames: T.
        size: S.

    Raises:
        UserError: the graph does not begin with a normalization of each channel.
    """
    chain, end, factor, offset = _normalization(model.graph)
    std = 1 / (255 * factor)
    # The head of the graph takes uint8, and its tail float; the batch stays open.
    pixels = helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 3, frames, size, size])
    head = _copy(model, chain)
    del head.graph.output[:]
    head.graph.output.append(pixels)
    tail = _copy(model, [node for node in model.graph.node if node not in chain])
    for node in tail.graph.node:
        node.input[:] = [INPUT if name == end else name for name in node.input]
    del tail.graph.input[:]
    pixels.name = INPUT
    tail.graph.input.append(pixels)
    del tail.graph.value_info[:]
    onnx.checker.check_model(tail, full_check=True)
    return Split(head, tail, tuple((-offset * std).tolist()), tuple(std.tolist()))


def _normalization(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], str, np.ndarray, np.ndarray]:
    """The nodes of the normalization, the tensor that they give, and what they do: value * factor + offset, each (3,)."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    kept = {value.name for value in graph.output}
    name, order, is_float = INPUT, _CHANNELS_LAST, False
    factor, offset, chain = np.ones(3), np.zeros(3), []
    while name not in kept and not (name == _PIXELS and is_float):
        users = [node for node in graph.node if name in node.input and not (name == INPUT and _is_batch_size(node))]
        if len(users) != 1:
            break
        node = users[0]
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Cast" and not is_float and attributes["to"].i == TensorProto.FLOAT:
            is_float = True
        elif node.op_type == "Transpose" and order == _CHANNELS_LAST:
            if tuple(attributes["perm"].ints) != _CHANNELS_FIRST:
                break
            order = _CHANNELS_FIRST
        elif node.op_type in ("Sub", "Add", "Mul", "Div") and is_float:
            other = next((constants[part] for part in node.input if part in constants), None)
            values = None if other is None else _per_channel(other, order)
            # A network may begin with arithmetic of its own, behind the pixels in the order that it wants.
            if values is None or (node.op_type in ("Sub", "Div") and node.input[0] != name):
                break
            if node.op_type in ("Sub", "Add"):
                offset = offset + (values if node.op_type == "Add" else -values)
            else:
                values = values if node.op_type == "Mul" else 1 / values
                factor, offset = factor * values, offset * values
        else:
            break
        chain.append(node)
        name = node.output[0]
    if not is_float or order != _CHANNELS_FIRST or not (np.isfinite(factor).all() and (factor > 0).all()):
        made_by = producers(graph)
        begins = ", ".join(node.op_type for node in chain) or "none of these"
        raise UserError(
            f"--input float: the graph does not begin with Cast, Transpose and the arithmetic of a normalization, but with "
            f"{begins}{f' and {made_by[name].op_type}' if name in made_by and not chain else ''}; take --input uint8"
        )
    return chain, name, factor, offset


def _is_batch_size(node: onnx.NodeProto) -> bool:
    """Whether a node reads the batch size of its input, which is the same before and after the normalization."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return node.op_type == "Shape" and attributes.get("start", 0) == 0 and attributes.get("end") == 1


def _per_channel(values: np.ndarray, order: tuple[int, ...]) -> np.ndarray | None:
    """Constants as one value for each channel, float64 (3,); None if they are of another kind."""
    axis = order.index(4)
    shape = (1,) * (5 - values.ndim) + values.shape
    if len(shape) != 5 or any(size != 1 for at, size in enumerate(shape) if at != axis) or shape[axis] not in (1, 3):
        return None
    return np.broadcast_to(values.astype(np.float64).ravel(), 3)


def _copy(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A copy of a graph with some of its nodes, and the constants that these use."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    return result
