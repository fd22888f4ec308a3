"""From the fp32 graph to the others: fp16 by making it half, int8 by Q/DQ pairs around what runs in integers.

Precision lives in the graph, so that every backend, strongly typed TensorRT among them, computes the same network.
Pixels are normalised in fp32 and logits leave as fp32, whatever lies between.
Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssv2rt.engines.export import INPUT, OUTPUT


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fp16 weights and activations, Q/DQ scales included.

    The first convolution is preceded by a cast to fp16 and the logits are followed by one to fp32; what comes before
    the first convolution stays fp32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    first = _first_convolution(graph)
    pixels = _source_of_pixels(graph, first)
    kept = _before(graph, pixels)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor))
    for node in graph.node:
        if set(node.output) & kept:
            continue
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t))
    _replace_input(graph, pixels, f"{pixels}_half")
    cast = helper.make_node("Cast", [pixels], [f"{pixels}_half"], name="pixels_to_half", to=TensorProto.FLOAT16)
    position = next(i for i, node in enumerate(graph.node) if pixels in node.output)
    graph.node.insert(position + 1, cast)
    for node in graph.node:
        for number, name in enumerate(node.output):
            if name == OUTPUT:
                node.output[number] = f"{OUTPUT}_half"
    graph.node.append(
        helper.make_node("Cast", [f"{OUTPUT}_half"], [OUTPUT], name="logits_to_float", to=TensorProto.FLOAT)
    )
    onnx.checker.check_model(result, full_check=True)
    return result


def quantise(source: Path, target: Path, clips: Iterable[np.ndarray], *, method: str) -> None:
    """Writes the int8 version of an fp32 graph: symmetric Q/DQ pairs, by ONNX Runtime's quantiser.

    Weights are quantised per channel, activations per tensor; biases stay as they are. The first convolution and the
    classifier keep their precision: they see raw pixels and make the decision, at little cost.

    Args:
        source: fp32 ONNX file made by `export_onnx`.
        target: file to write.
        clips: calibration batches, uint8 (N, T, S, S, 3).
        method: 'minmax', 'entropy' or 'percentile': how a range follows from what was seen.
    """
    from onnxruntime import quantization as ort

    methods = {
        "minmax": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
        "percentile": ort.CalibrationMethod.Percentile,
    }

    class Clips(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self._clips: Iterator[np.ndarray] = iter(clips)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._clips, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        ort.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        ort.quantize_static(
            str(prepared),
            str(target),
            Clips(),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add"],
            nodes_to_exclude=[_first_convolution(graph).name],
            per_channel=True,
            activation_type=ort.QuantType.QInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=methods[method],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
            },
        )
    model = onnx.load(target)
    properties = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def label_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Notes the precision in the file's metadata."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, properties | {"precision": precision})
    return model


def _first_convolution(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "Conv")


def _source_of_pixels(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> str:
    """The tensor of normalised pixels: what the first convolution reads, before any Q/DQ pair."""
    makers = {name: node for node in graph.node for name in node.output}
    name = convolution.input[0]
    while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = makers[name].input[0]
    return name


def _before(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of `tensor` and of all that it is computed from."""
    makers = {name: node for node in graph.node for name in node.output}
    names, queue = set(), [tensor]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += makers[name].input if name in makers else []
    return names


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == old:
                node.input[number] = new


def _half_tensor(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to its own developers, which it gives to the root logger and to stdout."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
