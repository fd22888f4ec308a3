"""Reads untrusted ONNX files safely, and infers the type and shape of every tensor in a graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, external_data_helper

from ssv2rt.core.errors import UserError

logger = logging.getLogger(__name__)


_DTYPE_NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
_MAX_SHAPE_ELEMENTS = 1024
"""Constants with more elements than this are assumed not to affect shapes."""
_PROTOBUF_LIMIT = 1 << 31
"""Size in bytes from which protobuf cannot read a file."""


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one tensor of a graph."""

    dtype: str
    """fp32, fp16, bf16, int8, uint8, int64 ...; '?' if unknown."""
    shape: tuple[int | str, ...] | None
    """Sizes. Those that depend on the batch are text such as 'batch' or '4*batch'; an unknown size is '?'. None if not
    even the number of dimensions is known."""
    one_clip: tuple[int, ...] | None
    """Shape for a batch of one clip, or for the batch of the graph if that is fixed. None unless all sizes are known."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its external data. Raises the same errors as `read_graph_and_weight_files`."""
    return read_graph_and_weight_files(path)[0]


def read_graph_and_weight_files(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Reads an ONNX file with its external data, with local functions inlined.

    Returns:
        The model, and the paths of the files of external data.

    Raises:
        UserError: the file cannot be read or is not a complete ONNX graph, or external data is missing or outside the
            folder of the file.
    """
    try:
        if path.stat().st_size >= _PROTOBUF_LIMIT:
            raise UserError(
                f"'{path}' has 2 GiB or more, and an ONNX file has less; its weights belong in a file beside it"
            )
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(_not_a_graph(path, "it is something else, or cut off")) from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    if not model.ir_version or not model.graph.node:
        raise UserError(_not_a_graph(path, "it holds no layers"))
    try:
        files = _weight_files(model, path)
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        skeleton = _without_weights(model)
        onnx.checker.check_model(skeleton)
        if not _is_utf8(skeleton) or not all(_is_utf8(entry) for entry in model.metadata_props):
            raise ValueError("a name in it is not text")
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_not_a_graph(path, " ".join(str(error).split())[:200])) from None
    return model, files


def _weight_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files of external data of a model whose external data is not loaded yet."""
    found: dict[Path, None] = {}
    for tensor in _all_constants(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = path.parent / place
        # A symbolic link could lead outside the folder just as '..' could, and the file may come from an untrusted source.
        if not place or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts or file.is_symlink():
            raise UserError(
                f"'{path}': the weights of '{tensor.name}' are in '{place}', and only plain files in its own folder are "
                f"read; save it with its weights inside, or in a file beside it"
            )
        if not file.is_file():
            raise UserError(f"'{path}': its weights are in '{file}', which is missing; copy that file, too")
        found[file] = None
    return list(found)


def tensors(model: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Type and shape of every tensor of a graph by name, weights included. Subgraphs are not inspected.

    Shapes are inferred for a batch of two and of three clips. The sizes that differ depend on the batch.
    """
    found = {name: TensorInfo("?", None, None) for node in model.graph.node for name in node.output}
    if fixed_batch(model) is not None:
        two = three = _infer(model, None)
        batch = ""
    else:
        two, three = _infer(model, 2), _infer(model, 3)
        batch = _inputs_without_weights(model.graph)[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    return found | {n: _merge_shapes(kind, dims, three[n][1], batch) for n, (kind, dims) in two.items() if n in three}


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch size that the graph is fixed to; None if the batch is dynamic."""
    inputs = _inputs_without_weights(model.graph)
    dims = inputs[0].type.tensor_type.shape.dim if inputs else []
    if not dims:
        return 1
    return max(1, dims[0].dim_value) if dims[0].HasField("dim_value") else None


def declared_tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    """Type and shape of a graph's input or output, as the graph declares them."""
    kind = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return TensorInfo(dtype_name(kind.elem_type), tuple(dims) if kind.HasField("shape") else None, None)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph with operators of another version.

    Raises:
        UserError: ONNX cannot convert it.
    """
    try:
        return onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"ONNX cannot bring the graph from opset {opset_of(model)} to opset {opset} "
            f"({' '.join(str(error).split())[:200]}); export it with opset {opset}"
        ) from None


def dtype_name(kind: int) -> str:
    """Short name of a `TensorProto` data type, such as 'fp32' for `TensorProto.FLOAT`; '?' if there is no such type."""
    if kind not in TensorProto.DataType.values():
        return "?"
    name = TensorProto.DataType.Name(kind).lower()
    return _DTYPE_NAMES.get(name, name)


def _not_a_graph(path: Path, why: str) -> str:
    return f"'{path}' is not an ONNX graph that can be read ({why}); give an .onnx file, an engine's folder or a run"


def _merge_shapes(kind: int, two: list[int | str] | None, three: list[int | str] | None, batch: str) -> TensorInfo:
    if two is None or three is None or len(two) != len(three):
        return TensorInfo(dtype_name(kind), None, None)
    shape: list[int | str] = []
    one_clip: list[int] = []
    for a, b in zip(two, three, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            shape.append("?" if a != b or str(a).startswith("unk__") else a)
        elif a == b:
            shape.append(a)
            one_clip.append(a)
        else:
            each, rest = b - a, 3 * a - 2 * b
            shape.append((batch if each == 1 else f"{each}*{batch}") + (f"{rest:+d}" if rest else ""))
            one_clip.append(each + rest)
    return TensorInfo(dtype_name(kind), tuple(shape), tuple(one_clip) if len(one_clip) == len(shape) else None)


def _infer(model: onnx.ModelProto, batch: int | None) -> dict[str, tuple[int, list[int | str] | None]]:
    """Infers type and sizes of each tensor.

    Args:
        model: the graph.
        batch: batch size to infer for; None if the graph has a fixed batch.
    """
    skeleton = _without_weights(model)
    inputs = _inputs_without_weights(model.graph)
    if batch is not None:
        name = inputs[0].type.tensor_type.shape.dim[0].dim_param
        for value in skeleton.graph.input:
            for dim in value.type.tensor_type.shape.dim[:1]:
                if not dim.HasField("dim_value") and dim.dim_param == name:
                    dim.dim_value = batch
        for value in skeleton.graph.output:  # declared output shapes have a symbolic batch, and must be inferred
            value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # the graph is inconsistent: use the declared shapes only
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
    """A copy of a graph with its large weights declared as inputs.

    That is enough for shape inference and for the checker, and it is much faster to copy and check.
    """
    result = onnx.ModelProto(ir_version=max(4, model.ir_version), opset_import=model.opset_import)
    source, graph = model.graph, result.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(_inputs_without_weights(source))
    graph.output.extend(source.output)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _MAX_SHAPE_ELEMENTS:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return result


def _is_utf8(message: Message) -> bool:
    """Whether all strings of a message are valid UTF-8. Protobuf silently returns invalid ones as bytes."""
    for field, value in message.ListFields():
        entries = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if field.type == field.TYPE_STRING and not all(isinstance(entry, str) for entry in entries):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_utf8(entry) for entry in entries):
            return False
    return True


def _inputs_without_weights(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph that are not weights. Before IR version 4, ONNX files list weights as inputs, too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _all_constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """All constants of a graph: initializers and tensor attributes, including those of subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for part in (attribute.g, *attribute.graphs):
                yield from _all_constants(part)
