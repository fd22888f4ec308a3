"""ONNX files, read with care, and the type and the shape of every tensor in them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, external_data_helper

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
_SMALL = 1024
"""Elements of a constant that shapes may depend on."""
_LARGEST = 1 << 31
"""Bytes that protobuf reads."""


@dataclass(frozen=True)
class Tensor:
    """What flows along one name of a graph."""

    dtype: str
    """fp32, fp16, bf16, int8, uint8, int64 ..."""
    shape: tuple[int | str, ...] | None
    """Sizes; those that follow the batch are like 'batch' or '4*batch', what cannot be told is '?'. None: not even
    the number of dimensions is known."""
    one: tuple[int, ...] | None
    """Sizes for one clip, or for the batch if that is fixed; None unless all are known."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with the weights that lie beside it; raises as `read_parts` does."""
    return read_parts(path)[0]


def read_parts(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Reads an ONNX file with the weights that lie beside it, and tells the files that they are in.

    Raises:
        UserError: it cannot be read, it is not a complete ONNX graph, or weights are missing or lie outside its folder.
    """
    try:
        if path.stat().st_size >= _LARGEST:
            raise UserError(
                f"'{path}' has 2 GiB or more, and an ONNX file has less; its weights belong in a file beside it"
            )
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(_no_graph(path, "it is something else, or cut off")) from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    if not model.ir_version or not model.graph.node:
        raise UserError(_no_graph(path, "it holds no layers"))
    try:
        files = _weight_files(model, path)
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        skeleton = _without_weights(model)
        onnx.checker.check_model(skeleton)
        if not _is_text(skeleton) or not all(_is_text(entry) for entry in model.metadata_props):
            raise ValueError("a name in it is not text")
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_no_graph(path, " ".join(str(error).split())[:200])) from None
    return model, files


def _weight_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files beside an ONNX file that hold weights of it, which are not loaded yet."""
    found: dict[Path, None] = {}
    for tensor in _tensors_of(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = path.parent / place
        # What a link points to is no better than what '..' does: the file may come from anywhere.
        if not place or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts or file.is_symlink():
            raise UserError(
                f"'{path}': the weights of '{tensor.name}' are in '{place}', and only plain files in its own folder are "
                f"read; save it with its weights inside, or in a file beside it"
            )
        if not file.is_file():
            raise UserError(f"'{path}': its weights are in '{file}', which is missing; copy that file, too")
        found[file] = None
    return list(found)


def tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Every tensor of a graph by name, weights included.

    Shapes are inferred twice, for two and for three clips: what differs follows the batch. Subgraphs are not looked into.
    """
    found = {name: Tensor("?", None, None) for node in model.graph.node for name in node.output}
    if fixed_batch(model) is not None:
        two = three = _infer(model, None)
        batch = ""
    else:
        two, three = _infer(model, 2), _infer(model, 3)
        batch = _real_inputs(model.graph)[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    return found | {n: _tensor(kind, dims, three[n][1], batch) for n, (kind, dims) in two.items() if n in three}


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """Clips that the graph takes at once; None if that is free."""
    inputs = _real_inputs(model.graph)
    dims = inputs[0].type.tensor_type.shape.dim if inputs else []
    if not dims:
        return 1
    return max(1, dims[0].dim_value) if dims[0].HasField("dim_value") else None


def described(value: onnx.ValueInfoProto) -> Tensor:
    """A graph's input or output as the graph declares it."""
    kind = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return Tensor(dtype_name(kind.elem_type), tuple(dims) if kind.HasField("shape") else None, None)


def dtype_name(kind: int) -> str:
    """'fp32' for `TensorProto.FLOAT`, and so on."""
    if kind not in TensorProto.DataType.values():
        return "?"
    name = TensorProto.DataType.Name(kind).lower()
    return _NAMES.get(name, name)


def _no_graph(path: Path, why: str) -> str:
    return f"'{path}' is not an ONNX graph that can be read ({why}); give an .onnx file, an engine's folder or a run"


def _tensor(kind: int, two: list[int | str] | None, three: list[int | str] | None, batch: str) -> Tensor:
    if two is None or three is None or len(two) != len(three):
        return Tensor(dtype_name(kind), None, None)
    shape: list[int | str] = []
    one: list[int] = []
    for a, b in zip(two, three, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            shape.append("?" if a != b or str(a).startswith("unk__") else a)
        elif a == b:
            shape.append(a)
            one.append(a)
        else:
            each, rest = b - a, 3 * a - 2 * b
            shape.append((batch if each == 1 else f"{each}*{batch}") + (f"{rest:+d}" if rest else ""))
            one.append(each + rest)
    return Tensor(dtype_name(kind), tuple(shape), tuple(one) if len(one) == len(shape) else None)


def _infer(model: onnx.ModelProto, batch: int | None) -> dict[str, tuple[int, list[int | str] | None]]:
    """Types and sizes by name, for a batch; None: for the one that is fixed."""
    skeleton = _without_weights(model)
    inputs = _real_inputs(model.graph)
    if batch is not None:
        name = inputs[0].type.tensor_type.shape.dim[0].dim_param
        for value in skeleton.graph.input:
            for dim in value.type.tensor_type.shape.dim[:1]:
                if not dim.HasField("dim_value") and dim.dim_param == name:
                    dim.dim_value = batch
        for value in skeleton.graph.output:  # they say what is to be found out
            value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # layers that contradict each other: what is declared has to do
        graph = skeleton.graph
    found: dict[str, tuple[int, list[int | str] | None]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
        found[value.name] = (kind.elem_type, dims if kind.HasField("shape") else None)
    for tensor in model.graph.initializer:
        found[tensor.name] = (tensor.data_type, list(tensor.dims))
    return found


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large constants as inputs, which is all that shapes need; quick to copy and to check."""
    result = onnx.ModelProto(ir_version=max(4, model.ir_version), opset_import=model.opset_import)
    source, graph = model.graph, result.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(_real_inputs(source))
    graph.output.extend(source.output)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return result


def _is_text(message: Message) -> bool:
    """Whether all strings are UTF-8; protobuf hands out the others as bytes, without a word."""
    for field, value in message.ListFields():
        entries = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if field.type == field.TYPE_STRING and not all(isinstance(entry, str) for entry in entries):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_text(entry) for entry in entries):
            return False
    return True


def _real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Those that are not weights: files of an older kind list weights as inputs, too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Constants of a graph, in nodes and their subgraphs, too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for part in (attribute.g, *attribute.graphs):
                yield from _tensors_of(part)
