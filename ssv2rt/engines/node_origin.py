"""Finds the module of the PyTorch network that each ONNX node comes from, and the block that the module belongs to.

`torch.onnx` only numbers its nodes (`node_conv3d_7`), but leaves two traces of their modules: the names of the weights
(`backbone.layer2.0.conv2.0.weight`) and the metadata of the nodes. ONNX Runtime's preprocessing for int8 drops the metadata
of some networks. It always keeps the names of the weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ssv2rt.engines.export import SCOPES
from ssv2rt.engines.graph_nodes import node_name, producers
from ssv2rt.engines.onnx_files import TensorInfo, tensors

logger = logging.getLogger(__name__)


PRODUCT_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT_OPS = ("LSTM", "GRU", "RNN")
COMPUTE_OPS = (*PRODUCT_OPS, *RECURRENT_OPS, "Add")
"""The operators that do the main arithmetic. All others move values or are element-wise."""

_WEIGHT = re.compile(r"(.+)\.(?:weight|bias)\w*")
_PASS_THROUGH_OPS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
)
"""Operators that may stand between a weight and the node that uses it."""


@dataclass(frozen=True)
class NodeOrigin:
    """The module and block that a node comes from."""

    module: str
    """Path of the module in the backbone, such as layer2.0.conv2.0; empty if unknown."""
    block: str
    """Path of the block, such as layer2.0; empty for nodes before the first block."""


def block_of(module: str) -> str:
    """The block of a module: 'layer2.0' of 'layer2.0.conv2.0'.

    All modules of the stem, or of the stem of a pathway, are one block. For other modules, the path is cut after its first
    number if that is one of the first three parts, else after the second part: layer1.0, convolutions.3, stages.mixed_3b,
    recurrent, head.
    """
    parts = module.split(".")
    if "stem" in parts[:2]:
        return ".".join(parts[: parts.index("stem") + 1])
    number = next((place for place, part in enumerate(parts[:3]) if part.isdecimal()), 1)
    return ".".join(parts[: number + 1])


def blocks(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The blocks of a network, in the order of the graph, each with the names of its compute nodes.

    Compute nodes are convolutions, matrix products, recurrent layers and additions of floats. Each is in exactly one block.
    Use the fp32 graph from `export_onnx`: it has the most metadata, and the graphs in other precisions keep its node names.
    """
    infos = tensors(model)
    found: dict[str, list[str]] = {}
    for node, place in zip(model.graph.node, node_origins(model.graph), strict=True):
        if is_compute_node(node, infos):
            found.setdefault(place.block or node_name(node), []).append(node_name(node))
    return {block: tuple(names) for block, names in found.items()}


def is_compute_node(node: onnx.NodeProto, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether a node is one of `COMPUTE_OPS` and has a float output. Integer additions only compute shapes."""
    return (
        node.op_type in COMPUTE_OPS
        and bool(node.output)
        and not infos[node.output[0]].dtype.startswith(("int", "uint"))
    )


def node_origins(graph: onnx.GraphProto) -> list[NodeOrigin]:
    """The origin of each node, in the order of the nodes.

    A node without traces of its module is put into the latest of the blocks that feed it. A convolution, matrix product or
    recurrent layer whose weights have uninformative names is a block of its own.
    """
    producer_of = producers(graph)
    weights = {tensor.name for tensor in graph.initializer}
    order: dict[str, int] = {}
    reached: dict[str, str] = {}
    found = []
    for node in graph.node:
        # Q/DQ nodes of weights are skipped: they may come before all other nodes, and would spoil the order of the blocks.
        roots = (
            []
            if node.op_type in _PASS_THROUGH_OPS
            else [name for name in _original_inputs(node, producer_of) if name in weights]
        )
        module = _module(node, roots)
        if module:
            block = block_of(module)
        elif roots and node.op_type in (*PRODUCT_OPS, *RECURRENT_OPS):
            block = node_name(node)
        else:
            block = max(
                (reached.get(name, "") for name in node.input), key=lambda name: order.get(name, -1), default=""
            )
        if node.op_type in COMPUTE_OPS:
            order.setdefault(block, len(order))
        reached.update(dict.fromkeys(node.output, block))
        found.append(NodeOrigin(module, block))
    return found


def original_tensor(name: str, producer_of: Mapping[str, onnx.NodeProto]) -> str:
    """Name of the tensor that `name` was quantized, cast or reshaped from."""
    seen = set()
    while (
        name in producer_of
        and producer_of[name].op_type in _PASS_THROUGH_OPS
        and producer_of[name].input
        and name not in seen
    ):
        seen.add(name)
        name = producer_of[name].input[0]
    return name


def _original_inputs(node: onnx.NodeProto, producer_of: Mapping[str, onnx.NodeProto]) -> list[str]:
    return [original_tensor(name, producer_of) for name in node.input if name]


def _module(node: onnx.NodeProto, weights: list[str]) -> str:
    for weight in weights:
        if match := _WEIGHT.fullmatch(weight):
            return _in_backbone(match[1])
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    names = re.findall(
        r"'([^']*)'", scopes
    )  # module paths from the outermost to the innermost, then the node's own name
    return _in_backbone(names[-2]) if len(names) > 1 and not names[-2].startswith("_") else ""


def _in_backbone(module: str) -> str:
    return "" if module == "backbone" else module.removeprefix("backbone.")
