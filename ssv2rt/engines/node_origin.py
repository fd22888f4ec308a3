"""Where the nodes of a graph come from: the module of the network, and the block that it belongs to.

`torch.onnx` numbers its nodes (`node_conv3d_7`), and says where each comes from in two ways: in the names of the weights
(`backbone.layer2.0.conv2.0.weight`) and in the node's metadata. ONNX Runtime's preparation for int8 keeps both for some
networks, and for others drops the metadata; the weights' names always stay.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ssv2rt.engines.export import SCOPES
from ssv2rt.engines.onnx_files import Tensor, tensors

logger = logging.getLogger(__name__)


PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT = ("LSTM", "GRU", "RNN")
COMPUTE = (*PRODUCTS, *RECURRENT, "Add")
"""What makes a network's values; the rest moves them, or is done to each of them by itself."""

_WEIGHT = re.compile(r"(.+)\.(?:weight|bias)\w*")
_SAME = ("QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
"""What may stand between a weight and the node that uses it."""


@dataclass(frozen=True)
class VideoLocation:
    """Where a node comes from."""

    module: str
    """Path of the module in the backbone, such as layer2.0.conv2.0; empty if that is not known."""
    block: str
    """Such as layer2.0. Empty for what comes before the first block."""


def block_of(module: str) -> str:
    """The block of a module: 'layer2.0' of 'layer2.0.conv2.0'.

    The stem is one block, whatever is in it. Otherwise the path is cut behind its first number, if that is one of the
    first three parts, or behind its second part: layer1.0, convolutions.3, stages.mixed_3b, recurrent, head.
    """
    parts = module.split(".")
    if parts[0] == "stem":
        return "stem"
    number = next((place for place, part in enumerate(parts[:3]) if part.isdecimal()), 1)
    return ".".join(parts[: number + 1])


def blocks(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The blocks of a network, in the order of the graph, each with the names of its nodes that compute.

    Those are convolutions, matrix products, recurrent layers and additions of floats; each is in exactly one block. Take
    the fp32 graph that `export_onnx` wrote: it says the most about itself, and the other graphs keep its nodes' names.
    """
    kinds = tensors(model)
    found: dict[str, list[str]] = {}
    for node, place in zip(model.graph.node, places(model.graph), strict=True):
        if computes(node, kinds):
            found.setdefault(place.block or node_name(node), []).append(node_name(node))
    return {block: tuple(names) for block, names in found.items()}


def computes(node: onnx.NodeProto, kinds: Mapping[str, Tensor]) -> bool:
    """Whether a node is one of `COMPUTE`, and not on integers: additions are also used to work out shapes."""
    return node.op_type in COMPUTE and bool(node.output) and not kinds[node.output[0]].dtype.startswith(("int", "uint"))


def node_name(node: onnx.NodeProto) -> str:
    """The node's name; one without a name goes by that of its result."""
    return node.name or next((name for name in node.output if name), node.op_type)


def places(graph: onnx.GraphProto) -> list[VideoLocation]:
    """Where each node comes from, in the order of the nodes.

    A node that does not say belongs to the latest of the blocks that feed it; one with weights that do not say where they
    are from is a block of its own.
    """
    makers = producers(graph)
    weights = {tensor.name for tensor in graph.initializer}
    order: dict[str, int] = {}
    reached: dict[str, str] = {}
    found = []
    for node in graph.node:
        # What quantises weights says nothing of its own: it stands before all else, in no order.
        roots = [] if node.op_type in _SAME else [name for name in _roots(node, makers) if name in weights]
        module = _module(node, roots)
        if module:
            block = block_of(module)
        elif roots and node.op_type in (*PRODUCTS, *RECURRENT):
            block = node_name(node)
        else:
            block = max(
                (reached.get(name, "") for name in node.input), key=lambda name: order.get(name, -1), default=""
            )
        if node.op_type in COMPUTE:
            order.setdefault(block, len(order))
        reached.update(dict.fromkeys(node.output, block))
        found.append(VideoLocation(module, block))
    return found


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def root(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that `name` is, before it was quantised, cast or laid out in another way."""
    seen = set()
    while name in makers and makers[name].op_type in _SAME and makers[name].input and name not in seen:
        seen.add(name)
        name = makers[name].input[0]
    return name


def _roots(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[str]:
    return [root(name, makers) for name in node.input if name]


def _module(node: onnx.NodeProto, weights: list[str]) -> str:
    for weight in weights:
        if match := _WEIGHT.fullmatch(weight):
            return _in_backbone(match[1])
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    names = re.findall(r"'([^']*)'", scopes)  # of modules, from the outermost; then the node's own
    return _in_backbone(names[-2]) if len(names) > 1 and not names[-2].startswith("_") else ""


def _in_backbone(module: str) -> str:
    return "" if module == "backbone" else module.removeprefix("backbone.")
