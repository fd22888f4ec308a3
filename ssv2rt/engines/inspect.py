"""What is in a graph and in an engine: layers, precisions, shapes, parameters and arithmetic, as plain facts.

The graph says in which precision each layer runs; the backend may fuse layers, and carries out what the graph says.
Subgraphs (`If`, `Loop`) are not looked into. A MAC is one multiplication and addition; additions, pools and norms count none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from ssv2rt.engines.backends.tensorrt.layers import FILE, layers_in_json, summary
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.node_origin import RECURRENT, computes, node_name, places, producers, root
from ssv2rt.engines.onnx_files import Tensor, described, dtype_name, fixed_batch, tensors

_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Softmax")
_OPERANDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "Add"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
    **dict.fromkeys(RECURRENT, (0, 1, 2)),
    **dict.fromkeys((*_POOLS, *_NORMS), (0,)),
}
"""The layers that are listed, and which of their inputs are computed with."""
_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("Gemm", "MatMul", "ConvInteger", "MatMulInteger", "Add"), (0, 1, 2)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (3, 8)),
    **dict.fromkeys(RECURRENT, (1, 2, 3)),
    **dict.fromkeys(_NORMS, (1, 2, 3, 4)),
}
"""Which of their inputs may be weights."""
_BITS = {"fp64": 64, "int64": 64, "fp32": 32, "int32": 32, "fp16": 16, "bf16": 16, "int4": 4, "uint4": 4}


@dataclass(frozen=True)
class Layer:
    """One layer of a graph."""

    name: str
    """Path of its module in the network, such as layer1.0.conv2.0, or the node's name where that is not known."""
    node: str
    block: str
    op: str
    precision: str
    """What it computes in: int8 where all that it multiplies or adds comes from 8-bit integers."""
    weight: tuple[int, ...] | None
    """Shape of its first weight."""
    output: tuple[int | str, ...] | None
    """Shape of its result, with sizes such as 'batch'."""
    parameters: int
    weight_bytes: int
    """As they are stored in the file."""
    run_bytes: int
    """In the type that they are computed with."""
    macs: int | None
    """For one clip. None: its shapes are not known."""
    share: float | None
    """Of the MACs of all layers, 0 to 1."""


def describe_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """Inputs, outputs, layers and totals of a graph, ready for JSON."""
    layers = list_layers(model)
    used = {node.domain for node in model.graph.node}
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import if entry.domain in used},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "inputs": [_port(value) for value in model.graph.input if value.name not in weights],
        "outputs": [_port(value) for value in model.graph.output],
        "nodes": len(model.graph.node),
        "layers": [asdict(layer) for layer in layers],
        "totals": totals(layers),
    }


def list_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers that compute, in the order of the graph."""
    graph, kinds, makers = model.graph, tensors(model), producers(model.graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    clips = fixed_batch(model) or 1
    found: list[Layer] = []
    for node, place in zip(graph.node, places(graph), strict=True):
        if not node.output or node.op_type not in _OPERANDS or (node.op_type == "Add" and not computes(node, kinds)):
            continue
        weights = [n for n in _inputs(node, _WEIGHTS.get(node.op_type, ())) if root(n, makers) in stored]
        tensor = [stored[root(name, makers)] for name in weights]
        macs = _macs(node, kinds)
        found.append(
            Layer(
                name=place.module or node_name(node),
                node=node_name(node),
                block=place.block,
                op=node.op_type,
                precision=_precision(node, kinds, makers),
                weight=kinds[weights[0]].one if weights and weights[0] in kinds else None,
                output=kinds[node.output[0]].shape,
                parameters=sum(math.prod(t.dims) for t in tensor),
                weight_bytes=sum(_bytes(t, dtype_name(t.data_type)) for t in tensor),
                run_bytes=sum(_bytes(t, _type(n, kinds, makers)) for t, n in zip(tensor, weights, strict=True)),
                macs=None if macs is None else macs // clips,
                share=None,
            )
        )
    total = sum(layer.macs or 0 for layer in found)
    return [replace(layer, share=None if layer.macs is None else layer.macs / max(1, total)) for layer in found]


def totals(layers: Iterable[Layer]) -> dict[str, Any]:
    """Sums over layers. Weights that several layers share count for each of them."""
    layers = list(layers)
    macs: Counter[str] = Counter()
    for layer in layers:
        macs[layer.precision] += layer.macs or 0
    total = macs.total()
    return {
        "layers": len(layers),
        "parameters": sum(layer.parameters for layer in layers),
        "weight_bytes": sum(layer.weight_bytes for layer in layers),
        "run_bytes": sum(layer.run_bytes for layer in layers),
        "gmacs": total / 1e9,
        "share_of_macs": {name: count / total for name, count in macs.most_common() if count},
        "uncounted": sum(layer.macs is None for layer in layers),
    }


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """What `bundle.json` says, sizes of the files, and what the backend says about its layers if it does."""
    facts = bundle.info.model_dump(mode="json")
    facts["files"] = {
        name: {"bytes": (bundle.path / name).stat().st_size, "sha256": digest}
        for name, digest in bundle.info.files.items()
    }
    layers = bundle.path / FILE
    return {"path": str(bundle.path), **facts, "engine_layers": engine_layers(layers) if layers.is_file() else None}


def engine_layers(path: Path) -> dict[str, Any]:
    """Layers of a finished TensorRT engine: how many, of which kinds, and its convolutions by precision.

    Args:
        path: `layers.json` of a bundle.
    """
    layers = layers_in_json(path.read_text(encoding="utf-8"))
    kinds = Counter(str(layer.get("LayerType", "?")) if isinstance(layer, dict) else "?" for layer in layers)
    return {"layers": len(layers), "kinds": dict(kinds.most_common()), **summary(layers)}


def _port(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = described(value)
    return {"name": value.name, "dtype": tensor.dtype, "shape": tensor.shape}


def _inputs(node: onnx.NodeProto, places: Iterable[int]) -> list[str]:
    return [node.input[place] for place in places if place < len(node.input) and node.input[place]]


def _type(name: str, kinds: Mapping[str, Tensor], makers: Mapping[str, onnx.NodeProto]) -> str:
    """What a tensor is computed with: what it was quantised to, or its own type."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        name = maker.input[0]
    dtype = kinds[name].dtype if name in kinds else "?"
    return "int8" if dtype == "uint8" else dtype


def _precision(node: onnx.NodeProto, kinds: Mapping[str, Tensor], makers: Mapping[str, onnx.NodeProto]) -> str:
    """That of its operands; where they differ, the one that is not quantised."""
    found = [_type(name, kinds, makers) for name in _inputs(node, _OPERANDS[node.op_type])]
    return next((dtype for dtype in found if dtype != "int8"), "int8" if found else "?")


def _bytes(tensor: TensorProto, dtype: str) -> int:
    return -(-math.prod(tensor.dims) * _BITS.get(dtype, 8) // 8)


def _macs(node: onnx.NodeProto, kinds: Mapping[str, Tensor]) -> int | None:
    """For one batch if that is fixed, else for one clip."""
    shapes = [kinds[name].one if name in kinds else None for name in (*node.input, node.output[0])]
    first, second, result = shapes[0], shapes[min(_OPERANDS[node.op_type][-1], len(shapes) - 1)], shapes[-1]
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(result) * math.prod(second[1:]) if result is not None and second else None
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:]) if first is not None and second else None
    if node.op_type in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        if result is None or not second:
            return None
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return math.prod(result) * second[-1 if turned or len(second) == 1 else -2]
    if node.op_type in RECURRENT:
        weights = shapes[1:3]
        if first is None or len(weights) < 2 or weights[0] is None or weights[1] is None:
            return None
        return math.prod(first[:2]) * sum(math.prod(shape) for shape in weights if shape)
    return 0
