"""Describes ONNX graphs and engine bundles: layers, precisions, shapes, parameters and MACs.

The precision of a layer is the one in the graph; a backend may fuse layers. Subgraphs (`If`, `Loop`) are not inspected.
A MAC is one multiply-accumulate. Additions, pooling and normalization count as none.
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

from ssv2rt.core.errors import UsageError, UserError, nearest
from ssv2rt.core.run_folders import RUNS, Run, find_run, is_run, known_runs
from ssv2rt.engines.backends.tensorrt.layers import LAYERS_FILE, convolution_counts, layers_in_json
from ssv2rt.engines.bundle import INFO, Bundle, open_bundle
from ssv2rt.engines.find import FoundEngine, engines_of, no_engine_yet, other_runs_with
from ssv2rt.engines.graph_nodes import node_name, producers
from ssv2rt.engines.node_origin import RECURRENT_OPS, is_compute_node, node_origins, original_tensor
from ssv2rt.engines.onnx_files import (
    TensorInfo,
    declared_tensor,
    dtype_name,
    fixed_batch,
    read_graph_and_weight_files,
    tensors,
)

_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Softmax")
_OPERAND_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "Add"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
    **dict.fromkeys(RECURRENT_OPS, (0, 1, 2)),
    **dict.fromkeys((*_POOLS, *_NORMS), (0,)),
}
"""The operators that are listed as layers, and the indices of the inputs that determine their precision."""
_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("Gemm", "MatMul", "ConvInteger", "MatMulInteger", "Add"), (0, 1, 2)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (3, 8)),
    **dict.fromkeys(RECURRENT_OPS, (1, 2, 3)),
    **dict.fromkeys(_NORMS, (1, 2, 3, 4)),
}
"""The indices of the inputs of each operator that may be weights."""
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
    """Precision of its arithmetic; int8 if all its operands are dequantized 8-bit integers."""
    weight: tuple[int, ...] | None
    """Shape of its first weight."""
    output: tuple[int | str, ...] | None
    """Shape of its output, with symbolic sizes such as 'batch'."""
    parameters: int
    weight_bytes: int
    """Bytes of its weights as stored in the file."""
    run_bytes: int
    """Bytes of its weights in the type that the layer computes with."""
    macs: int | None
    """MACs for one clip; None if its shapes are unknown."""
    share: float | None
    """Its share of the MACs of all layers, 0 to 1."""


def describe(name: str | None) -> dict[str, Any]:
    """The `bundle` (None for an ONNX file) and the `graph` of an engine, as values for JSON; of a run, all its `engines`.

    Args:
        name: folder of an engine, its name in the newest run, name or folder of a run, or an ONNX file. Of a run, by default
            the newest, the newest engine that runs here is described, or else the newest.

    Raises:
        UsageError: there is nothing with that name.
        UserError: it is none of these, or cannot be read.
    """
    found, engines = _find(name)
    file = found if isinstance(found, Path) else found.onnx_file
    model, weight_files = read_graph_and_weight_files(file)
    return {
        "bundle": None if isinstance(found, Path) else describe_bundle(found),
        "graph": {
            "path": str(file),
            "files": {part.name: part.stat().st_size for part in (file, *weight_files)},
            **describe_graph(model),
        },
        "engines": [_engine_facts(engine) for engine in engines],
    }


def _engine_facts(engine: FoundEngine) -> dict[str, Any]:
    facts = engine.info.model_dump(include={"precision", "backend", "backend_version", "target"}) if engine.info else {}
    return {"name": engine.name, **facts, "cannot_run": engine.cannot_run}


def describe_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """Inputs, outputs, layers and totals of a graph, as values for JSON."""
    layers = list_layers(model)
    used = {node.domain for node in model.graph.node}
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import if entry.domain in used},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "inputs": [_describe_input_or_output(value) for value in model.graph.input if value.name not in weights],
        "outputs": [_describe_input_or_output(value) for value in model.graph.output],
        "nodes": len(model.graph.node),
        "layers": [asdict(layer) for layer in layers],
        "totals": totals(layers),
    }


def list_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph, in the order of its nodes. Integer additions, which compute shapes, are left out."""
    graph, infos, producer_of = model.graph, tensors(model), producers(model.graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    clips = fixed_batch(model) or 1
    found: list[Layer] = []
    for node, place in zip(graph.node, node_origins(graph), strict=True):
        if (
            not node.output
            or node.op_type not in _OPERAND_INPUTS
            or (node.op_type == "Add" and not is_compute_node(node, infos))
        ):
            continue
        weights = [
            n
            for n in _input_names(node, _WEIGHT_INPUTS.get(node.op_type, ()))
            if original_tensor(n, producer_of) in stored
        ]
        tensor = [stored[original_tensor(name, producer_of)] for name in weights]
        macs = _macs(node, infos)
        found.append(
            Layer(
                name=place.module or node_name(node),
                node=node_name(node),
                block=place.block,
                op=node.op_type,
                precision=_precision(node, infos, producer_of),
                weight=infos[weights[0]].one_clip if weights and weights[0] in infos else None,
                output=infos[node.output[0]].shape,
                parameters=sum(math.prod(t.dims) for t in tensor),
                weight_bytes=sum(_bytes(t, dtype_name(t.data_type)) for t in tensor),
                run_bytes=sum(
                    _bytes(t, _compute_dtype(n, infos, producer_of)) for t, n in zip(tensor, weights, strict=True)
                ),
                macs=None if macs is None else macs // clips,
                share=None,
            )
        )
    total = sum(layer.macs or 0 for layer in found)
    return [replace(layer, share=None if layer.macs is None else layer.macs / max(1, total)) for layer in found]


def totals(layers: Iterable[Layer]) -> dict[str, Any]:
    """Sums over layers. Weights shared by several layers are counted once for each of them."""
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
    """The content of `bundle.json`, the file sizes, and the engine's layers if the bundle lists them."""
    facts = bundle.info.model_dump(mode="json")
    facts["files"] = {
        name: {"bytes": (bundle.path / name).stat().st_size, "sha256": digest}
        for name, digest in bundle.info.files.items()
    }
    layers = bundle.path / LAYERS_FILE
    return {"path": str(bundle.path), **facts, "engine_layers": engine_layers(layers) if layers.is_file() else None}


def engine_layers(path: Path) -> dict[str, Any]:
    """Counts the layers of a built TensorRT engine, in all and by type, and its convolutions by precision.

    Args:
        path: the bundle's `layers.json`.
    """
    layers = layers_in_json(path.read_text(encoding="utf-8", errors="replace"))
    types = Counter(str(layer.get("LayerType", "?")) if isinstance(layer, dict) else "?" for layer in layers)
    return {"layers": len(layers), "kinds": dict(types.most_common()), **convolution_counts(layers)}


def _find(name: str | None) -> tuple[Bundle | Path, list[FoundEngine]]:
    """An engine's bundle or an ONNX file, and all engines of the run if `name` is one. See `describe`."""
    if name is None:
        return _of_run(find_run())
    path = Path(name)
    try:
        if path.is_file():
            return path, []
        exists, is_engine = path.exists(), (path / INFO).is_file()
        names_run = any(is_run(place) or (place / "engines").is_dir() for place in (path, RUNS / name))
    except OSError as error:
        raise UserError(f"cannot look into '{name}': {error.strerror or error}; name a path that can be read") from None
    except ValueError:  # not a valid file name
        exists = is_engine = names_run = False
    if is_engine:
        return open_bundle(path), []
    if names_run:
        return _of_run(find_run(name, for_engine=True))
    if exists:
        raise UserError(
            f"'{name}' holds no {INFO} and no run; give an engine's folder (runs/NAME/engines/ENGINE), a run, or an .onnx file"
        )
    run = Run(path.parent.parent) if path.parent.name == "engines" else Run((RUNS / "latest").resolve())
    engines = engines_of(run)
    for engine in engines:
        if path.name in (engine.name, engine.info and engine.info.precision):
            return open_bundle(engine.path), []
    known, names = known_runs(RUNS, for_engine=True), sorted(engine.name for engine in engines)
    there = f"; engines of run '{run.name}': {', '.join(names)}" if names else ""
    raise UsageError(
        f"no engine, run or ONNX file '{name}'{nearest(name, [*names, *known])}{there}{other_runs_with(path.name, run)}; give "
        f"an engine's folder, an .onnx file, or one of the runs in '{RUNS}/': {', '.join(known) or 'none yet'}"
    )


def _of_run(run: Run) -> tuple[Bundle, list[FoundEngine]]:
    engines = engines_of(run)
    if not engines:
        raise no_engine_yet(run)
    shown = next((engine for engine in engines if not engine.cannot_run), engines[0])
    return open_bundle(shown.path), engines


def _describe_input_or_output(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = declared_tensor(value)
    return {"name": value.name, "dtype": tensor.dtype, "shape": tensor.shape}


def _input_names(node: onnx.NodeProto, indices: Iterable[int]) -> list[str]:
    return [node.input[index] for index in indices if index < len(node.input) and node.input[index]]


def _compute_dtype(name: str, infos: Mapping[str, TensorInfo], producer_of: Mapping[str, onnx.NodeProto]) -> str:
    """The type that a layer computes with when it reads this tensor: before dequantization, if it is dequantized."""
    maker = producer_of.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        name = maker.input[0]
    dtype = infos[name].dtype if name in infos else "?"
    return "int8" if dtype == "uint8" else dtype


def _precision(node: onnx.NodeProto, infos: Mapping[str, TensorInfo], producer_of: Mapping[str, onnx.NodeProto]) -> str:
    """The precision of a layer's operands; if only some of them are int8, that of the others."""
    found = [_compute_dtype(name, infos, producer_of) for name in _input_names(node, _OPERAND_INPUTS[node.op_type])]
    return next((dtype for dtype in found if dtype != "int8"), "int8" if found else "?")


def _bytes(tensor: TensorProto, dtype: str) -> int:
    return -(-math.prod(tensor.dims) * _BITS.get(dtype, 8) // 8)


def _macs(node: onnx.NodeProto, infos: Mapping[str, TensorInfo]) -> int | None:
    """MACs for one batch if the batch is fixed, else for one clip; None if shapes are unknown."""
    shapes = [infos[name].one_clip if name in infos else None for name in (*node.input, node.output[0])]
    first, second, result = shapes[0], shapes[min(_OPERAND_INPUTS[node.op_type][-1], len(shapes) - 1)], shapes[-1]
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return math.prod(result) * math.prod(second[1:]) if result is not None and second else None
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:]) if first is not None and second else None
    if node.op_type in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        if result is None or not second:
            return None
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return math.prod(result) * second[-1 if turned or len(second) == 1 else -2]
    if node.op_type in RECURRENT_OPS:
        weights = shapes[1:3]
        if first is None or len(weights) < 2 or weights[0] is None or weights[1] is None:
            return None
        return math.prod(first[:2]) * sum(math.prod(shape) for shape in weights if shape)
    return 0
