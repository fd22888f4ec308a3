"""Networks from ONNX files of other programs, brought into the form that `export_onnx` writes.

Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from pathlib import Path

import onnx
import onnx.shape_inference
import pydantic
from onnx import TensorProto
from pydantic import ValidationError

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import Clip, ClipReading, Data
from ssv2rt.core.sections import validated
from ssv2rt.dataset.labels import read_class_names
from ssv2rt.engines.bundle import ImportFacts, sha256
from ssv2rt.engines.export import EMBEDDING, OPSET, OUTPUT, PRODUCER
from ssv2rt.engines.graph_nodes import producers
from ssv2rt.engines.normalization import ASSUMED, PRESETS, Colors, Normalization
from ssv2rt.engines.onnx_files import declared_tensor, opset_of, read_graph, tensors
from ssv2rt.engines.project_graph import GraphInput, to_project_graph
from ssv2rt.engines.source import Source

logger = logging.getLogger(__name__)

_SAME_VALUES = ("Identity", "Cast", "Dropout", "Flatten", "Reshape", "Squeeze")
"""Operators that may follow the activation at the end of a network."""
_CUT = {
    "Softmax": "logits, up to a constant",
    "Sigmoid": "logits; scores are the softmax over the classes, which then exclude each other",
}
"""The activations that are cut off, and what the network gives without them."""
_IN_ORDER = {"rgb": "red, green, blue", "bgr": "blue, green, red"}


def source_of_onnx(
    file: Path,
    labels: Path | None,
    *,
    normalization: Normalization | None = None,
    colors: Colors | None = None,
    reading: ClipReading | None = None,
) -> Source:
    """An ONNX file from elsewhere.

    Its input is either uint8 (N, T, S, S, 3), as in this package, and the graph normalizes it; or it is float, normalized:
    (N, 3, T, S, S), as in exported networks of torchvision and PyTorchVideo, or (N, T, 3, S, S), as of networks that take
    frame by frame. Where both forms fit, with 3 frames, the first is taken. For a float input, the export adds the
    normalization to the graph. A Softmax or Sigmoid at the end is cut off.

    Args:
        file: ONNX file with one input and float outputs. The logits (N, K) are the output `logits`, or else the first
            output. The output `embedding` (N, D) is optional. Other outputs are dropped.
        labels: file of K class names; see `read_class_names`. None for those that a graph of this package names.
        normalization: how the network wants its pixels. By default ImageNet's mean and standard deviation are assumed.
        colors: in which order it wants them. By default "rgb" is assumed.
        reading: how clips are read. What it does not set is assumed.

    Raises:
        UserError: the file is not such a graph, has weights outside its folder, or another number of classes, or its clips
            are too small or too large.
        UsageError: there is a normalization, or an order of colors, for a graph with uint8 input, or nothing says the labels.
    """
    model = read_graph(file)
    names = read_class_names(labels) if labels else _stored_labels(model, file)
    if (opset := opset_of(model)) > (newest := onnx.defs.onnx_opset_version()):
        raise UserError(
            f"'{file}' has opset {opset}, and onnx {onnx.__version__} knows {newest}; export it with opset {OPSET}"
        )
    source = _input_of(model, file)
    if (normalization or colors) and not source.is_float:
        raise UsageError(
            f"'{file}' takes uint8 and normalizes its pixels itself; leave out --normalize, --mean, --std, --scale, --colors"
        )
    widths = _output_widths(model, file)
    logits = next(iter(widths))
    if (classes := widths[logits]) != len(names):
        named_by = f"'{labels}'" if labels else "its metadata"
        raise UserError(f"'{file}' gives {classes} classes, and {named_by} names {len(names)}; give its own --labels")
    if classes < 2:
        raise UserError(
            f"'{file}' gives {classes} class, and a prediction chooses among two or more; export all of them"
        )
    reading = _with_stored(reading or ClipReading(), model)
    try:
        clip = validated(Clip, {**reading.model_dump(), "frames": source.frames, "size": source.size})
    except UsageError as error:
        raise UserError(
            f"'{file}' takes {source.frames} frames of {source.size}x{source.size}, which are not read here ({error}); "
            "export it for clips in that range"
        ) from None
    cut = _cut_activation(model, logits, classes)
    pixels = (normalization or PRESETS[ASSUMED]) if source.is_float else None
    unset = [*(() if normalization else ("mean", "std", "scale")), *(() if colors else ("colors",))] if pixels else []
    facts = ImportFacts(file=str(file.resolve()), assumed=(*unset, *_assumed(reading)))
    if pixels:
        facts |= ImportFacts(mean=pixels.mean, std=pixels.std, scale=pixels.scale, colors=colors or "rgb")
    if cut:
        facts |= ImportFacts(cut=cut)

    def export(path: Path) -> None:
        for line in _what_is_taken(pixels, clip, facts):
            logger.info(f"{file.name}: {line}")
        onnx.save(to_project_graph(model, source, clip, names, widths, pixels, colors or "rgb"), path)

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
        command=shlex.join(
            ["ssv2rt", "build-engine", "--onnx", str(file), *(["--labels", str(labels)] if labels else [])]
        ),
        imported=facts,
    )


def _input_of(model: onnx.ModelProto, file: Path) -> GraphInput:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(
            f"'{file}' has {len(inputs)} inputs; it must take clips and nothing else; export it with one input"
        )
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    if kind == TensorProto.UINT8 and len(shape) == 5 and shape[4] == 3 and shape[2] == shape[3]:
        channels, frames, size = 4, shape[1], shape[2]
    elif kind == TensorProto.FLOAT and len(shape) == 5 and 3 in shape[1:3] and shape[3] == shape[4]:
        channels = 1 if shape[1] == 3 else 2
        if shape[1:3] == [3, 3]:
            logger.warning(f"'{file}' takes {shape}, which is taken as [N, 3, T, S, S], and not as [N, T, 3, S, S]")
        frames, size = shape[3 - channels], shape[3]
    else:
        raise UserError(
            f"'{file}' takes {TensorProto.DataType.Name(kind).lower()} {shape}; it must take uint8 [N, T, S, S, 3], or "
            f"float [N, 3, T, S, S] or [N, T, 3, S, S]; export it so"
        )
    if not (isinstance(frames, int) and isinstance(size, int)):
        raise UserError(f"'{file}' leaves frames or size open: {shape}; export it with only the batch dynamic")
    return GraphInput(inputs[0].name, channels, frames, size)


def _stored(model: onnx.ModelProto, key: str) -> str:
    """An entry of the metadata that this package writes into its graphs; "" in any other graph."""
    if model.producer_name != PRODUCER:
        return ""
    return next((entry.value for entry in model.metadata_props if entry.key == key), "")


def _stored_labels(model: onnx.ModelProto, file: Path) -> tuple[str, ...]:
    """The class names in a graph of this package.

    Raises:
        UsageError: there are none.
    """
    with contextlib.suppress(ValueError):
        names = pydantic.TypeAdapter(tuple[str, ...]).validate_json(_stored(model, "labels"))
        if names and len(set(names)) == len(names):
            return names
    raise UsageError(f"--onnx {file} does not name its classes; give --labels FILE")


def _with_stored(reading: ClipReading, model: onnx.ModelProto) -> ClipReading:
    """How clips are read, with what a graph of this package says where `reading` does not set it."""
    stored = _stored(model, "clip")
    try:
        if not stored:
            return reading
        known = Clip.model_validate_json(stored).model_dump(include={*ClipReading.model_fields})
    except ValidationError:
        logger.warning("the graph's note of how clips are read is damaged, and not used")
        return reading
    return ClipReading(**{**known, **{key: getattr(reading, key) for key in reading.model_fields_set}})


def _assumed(reading: ClipReading) -> tuple[str, ...]:
    """The settings of clips that nobody gave, and that scores depend on."""
    keys = ["sampling", "center_crop", "views"]
    keys += ["stride"] if reading.sampling == "dense" else []
    keys += ["rate"] if reading.timing == "time" else []
    keys += ["average"] if math.prod(reading.views) > 1 else []
    return tuple(f"clip.{key}" for key in keys if key not in reading.model_fields_set)


def _what_is_taken(pixels: Normalization | None, clip: Clip, facts: ImportFacts) -> list[str]:
    """One line on each thing that the file does not say itself."""
    assumed = facts["assumed"]
    lines = []
    if pixels:
        how = f" (assumed: {ASSUMED}; --normalize, or --mean and --std, say otherwise)" if "mean" in assumed else ""
        lines.append(f"pixels are normalized with {pixels}{how}")
        how = " (assumed; --colors bgr says otherwise)" if "colors" in assumed else ""
        lines.append(f"colors are in the order {_IN_ORDER[facts['colors']]}{how}")
    unset = [key for key in assumed if key.startswith("clip.")]
    how = f" (assumed: {', '.join(unset)}; --set clip.KEY=VALUE says otherwise)" if unset else ""
    lines.append(f"clips are read with {clip.in_words}{how}")
    if cut := facts.get("cut"):
        lines.append(f"its last {cut} is cut off, and it gives {_CUT[cut]}")
    return lines


def _cut_activation(model: onnx.ModelProto, logits: str, classes: int) -> str:
    """Replaces, in place, a Softmax or Sigmoid at the end of a graph by an Identity.

    Returns:
        Its operator, or "" if the graph does not end in one.
    """
    graph = model.graph
    made_by = producers(graph)
    name = logits
    while (node := made_by.get(name)) is not None and node.op_type in _SAME_VALUES:
        name = node.input[0]
    if node is None or node.op_type not in _CUT or sum(list(other.input).count(name) for other in graph.node) > 1:
        return ""
    shape = tensors(model)[name].shape or ()
    opset = opset_of(model)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1 if opset >= 13 else 1)
    # Before opset 13, Softmax is over all axes from this one on.
    over = shape[axis:] if opset < 13 else shape[axis : axis + 1 or None] if -len(shape) <= axis < len(shape) else ()
    if node.op_type == "Softmax" and math.prod(size if isinstance(size, int) else 0 for size in over) != classes:
        return ""
    operator = str(node.op_type)
    node.op_type = "Identity"
    del node.attribute[:]
    return operator


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


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]
