"""The networks that engines are built from: the best checkpoint of a run, or an ONNX file from elsewhere.

Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.labels import check_text, read_labels
from ssv2rt.engines.base import Outputs
from ssv2rt.engines.bundle import sha256
from ssv2rt.engines.export import EMBEDDING, INPUT, OPSET, OUTPUT, EngineModel, export_onnx
from ssv2rt.engines.onnx_files import declared_tensor, read_graph, tensors
from ssv2rt.models.clip_model import MEAN, STD, ClipModel
from ssv2rt.models.weights import load_trained

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A network with everything that is needed to build an engine from it."""

    name: str
    labels: tuple[str, ...]
    clip: Clip
    data: Data
    """How clips are read."""
    sha256: str
    """SHA-256 of the weights file or ONNX file; empty for a network in memory."""
    embedding: int
    """D; 0 if the graph has no embedding output."""
    export: Callable[[Path], None]
    """Writes the fp32 graph."""
    reference: Callable[[torch.Tensor], Outputs] | None
    """The network in PyTorch, from uint8 (N, T, S, S, 3) to its outputs; None if it is only known as an ONNX graph."""
    model: nn.Module | None
    """The same as `Graph.model`."""
    command: str
    """The `ssv2rt build-engine` command that selects this source, without further options."""


def source_of_run(run: Run) -> Source:
    """The best checkpoint of a run.

    Raises:
        UserError: the run has no such checkpoint, or it cannot be read.
    """
    trained = load_trained(run)
    recipe = trained.recipe
    return replace(
        source_of_model(trained.model, recipe.model.name, trained.labels, recipe.clip),
        data=recipe.data,
        sha256=sha256(trained.path),
        command=shlex.join(["ssv2rt", "build-engine", run.name]),
    )


def source_of_model(model: ClipModel, name: str, labels: tuple[str, ...], clip: Clip) -> Source:
    """A network in memory, in evaluation mode."""

    def export(path: Path) -> None:
        logger.info(f"exporting {name} to ONNX")
        export_onnx(model, path, clip=clip, labels=labels)

    def reference(clips: torch.Tensor) -> Outputs:
        embedding = model.features(clips)
        return Outputs(model.head(embedding), embedding)

    return Source(
        name=name,
        labels=labels,
        clip=clip,
        data=Data(),
        sha256="",
        embedding=model.head.in_features,
        export=export,
        reference=reference,
        model=EngineModel(model).eval(),
        command="ssv2rt build-engine",
    )


def source_of_onnx(file: Path, labels: Path) -> Source:
    """An ONNX file from elsewhere.

    Its input is either uint8 (N, T, S, S, 3), as in this package, or float (N, 3, T, S, S), normalized with ImageNet's mean
    and standard deviation, as in exported torchvision video networks. For a float input, the export adds the normalization
    of this package to the graph.

    Args:
        file: ONNX file with one input and float outputs. The logits (N, K) are the output `logits`, or else the first
            output. The output `embedding` (N, D) is optional. Other outputs are dropped.
        labels: file of K class names: SSv2's JSON, a JSON list, or text with one name in each line.

    Raises:
        UserError: the file is not such a graph, has weights outside its folder, or another number of classes.
    """
    names = _read_label_names(labels)
    model = read_graph(file)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"'{file}' has {len(inputs)} inputs; it must take clips and nothing else")
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    if kind == TensorProto.UINT8 and len(shape) == 5 and shape[4] == 3 and shape[2] == shape[3]:
        frames, size = shape[1], shape[2]
    elif kind == TensorProto.FLOAT and len(shape) == 5 and shape[1] == 3 and shape[3] == shape[4]:
        frames, size = shape[2], shape[3]
    else:
        raise UserError(
            f"'{file}' takes {TensorProto.DataType.Name(kind).lower()} {shape}; it must take uint8 [N, T, S, S, 3] or "
            f"float [N, 3, T, S, S]"
        )
    if not (isinstance(frames, int) and isinstance(size, int)):
        raise UserError(f"'{file}' leaves frames or size open: {shape}; export it with only the batch dynamic")
    widths = _output_widths(model, file)
    if (classes := next(iter(widths.values()))) != len(names):
        raise UserError(f"'{file}' gives {classes} classes, and '{labels}' names {len(names)}; give its own labels")
    clip = Clip(frames=frames, size=size)

    def export(path: Path) -> None:
        onnx.save(_to_project_graph(model, clip, names, widths, normalize=kind == TensorProto.FLOAT), path)

    return Source(
        name=file.stem,
        labels=names,
        clip=clip,
        data=Data(),
        sha256=sha256(file),
        embedding=list(widths.values())[1] if len(widths) > 1 else 0,
        export=export,
        reference=None,
        model=None,
        command=shlex.join(["ssv2rt", "build-engine", "--onnx", str(file), "--labels", str(labels)]),
    )


def _output_widths(model: onnx.ModelProto, file: Path) -> dict[str, int]:
    """The outputs of a graph that are used, by name, with their sizes: K of the logits, then D of the embedding if any."""
    results = {value.name: value for value in model.graph.output}
    logits = next((name for name in results if name == OUTPUT), None)
    logits = logits or next((name for name in results if name != EMBEDDING), EMBEDDING)
    known, widths = tensors(model), {}
    for name in dict.fromkeys((logits, EMBEDDING)):
        if name not in results:
            continue
        tensor = known.get(name, declared_tensor(results[name]))
        shape = tensor.shape or declared_tensor(results[name]).shape or ()
        if tensor.dtype == "fp32" and len(shape) == 2 and isinstance(shape[1], int):
            widths[name] = shape[1]
            continue
        gives = f"'{file}' gives '{name}' as {tensor.dtype} [{', '.join(map(str, shape))}]"
        if name == logits:
            raise UserError(
                f"{gives}; it must be float [N, classes]: export it in fp32, with the number of classes fixed"
            )
        logger.warning(f"{gives}, and not as float [N, features]; it is left out")
    return widths


def _to_project_graph(
    model: onnx.ModelProto, clip: Clip, labels: tuple[str, ...], widths: dict[str, int], *, normalize: bool
) -> onnx.ModelProto:
    """Returns the graph in the form that `export_onnx` writes.

    It gets the names, opset, dynamic batch, uint8 input and metadata of this package, and only the outputs in `widths`.
    """
    if next((entry.version for entry in model.opset_import if entry.domain == ""), OPSET) < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name for tensor in graph.initializer}
    source = next(value for value in graph.input if value.name not in weights)
    ends = (INPUT, "pixels") if normalize else (INPUT,)
    names = dict(zip((source.name, *widths), (ends[-1], OUTPUT, EMBEDDING), strict=False))
    _rename(graph, {name: f"{name}_theirs" for name in (*ends, OUTPUT, EMBEDDING) if name not in names} | names)
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"  # the quantizer excludes nodes by name
    del graph.value_info[:]
    if normalize:
        for name, values in (("mean", MEAN), ("scale", tuple(1 / value for value in STD))):
            array = np.array(values, np.float32).reshape(1, 3, 1, 1, 1)
            graph.initializer.append(numpy_helper.from_array(array, f"normalise.{name}"))
        steps = [f"normalise.{step}" for step in ("cast", "transpose", "sub", "mul")]
        nodes = [
            helper.make_node("Cast", [INPUT], [steps[0]], name=steps[0], to=TensorProto.FLOAT),
            helper.make_node("Transpose", [steps[0]], [steps[1]], name=steps[1], perm=[0, 4, 1, 2, 3]),
            helper.make_node("Sub", [steps[1], "normalise.mean"], [steps[2]], name=steps[2]),
            helper.make_node("Mul", [steps[2], "normalise.scale"], ["pixels"], name=steps[3]),
        ]
        for number, node in enumerate(nodes):
            graph.node.insert(number, node)
    shape: list[int | str | None] = ["batch", clip.frames, clip.size, clip.size, 3]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    del graph.output[:]
    for name, width in widths.items():
        graph.output.append(helper.make_tensor_value_info(names[name], TensorProto.FLOAT, ["batch", width]))
    facts = {"labels": json.dumps(labels), "clip": clip.model_dump_json(), "precision": "fp32"}
    helper.set_model_props(result, facts)
    result.producer_name = "ssv2rt"
    onnx.checker.check_model(result, full_check=True)
    return result


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Renames tensors simultaneously, so that names can be swapped."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


_NUMBERED = re.compile(r"\d+[;,\t]|.*[;\t]\s*\d+$")


def _read_label_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the labels '{path}': {error}") from None
    try:
        value = json.loads(text)
    except ValueError:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if names and all(_NUMBERED.match(name) for name in names):
            raise UserError(
                f"{path}: its lines have numbers beside the names, such as {names[0]!r}; give a class name alone on each line"
            ) from None
        return names
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return check_text(tuple(value), path)
    return read_labels(path)
