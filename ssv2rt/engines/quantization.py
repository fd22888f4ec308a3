"""Quantizes the fp32 graph to int8, with symmetric Q/DQ pairs from ONNX Runtime's quantizer, and converts int8 to fp8.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from ssv2rt.core.atomic_files import atomic_file
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.graph_nodes import first_convolutions, producers

logger = logging.getLogger(__name__)

QUANTIZED_OPS = ("Conv", "Add")
"""Operators that are quantized."""
HEAD_OPS = ("Gemm", "MatMul")
"""Operators of the classifier, which are quantized on request."""
_E4M3_MAX = 448.0


def quantize(
    source: Path,
    target: Path,
    clips: Iterable[np.ndarray],
    *,
    method: str,
    ranges: Path | None = None,
    keep: Sequence[str] = (),
    stem: bool = False,
    head: bool = False,
) -> None:
    """Writes the int8 version of an fp32 graph.

    Weights are quantized per channel, activations per tensor; biases are not quantized. The first convolution and the
    classifier stay in floating point by default: they are the most sensitive layers, and cost little time.

    Args:
        source: fp32 ONNX file made by `export_onnx`.
        target: file to write.
        clips: calibration batches, uint8 (N, T, S, S, 3); not read if the file `ranges` exists.
        method: 'minmax', 'entropy' or 'percentile': how calibration derives a dynamic range from the observed values.
        ranges: cache file of dynamic ranges, for later calls with the same graph, clips and method. It is written if it
            is missing or damaged. None for no cache.
        keep: names of further nodes of the source that are not quantized.
        stem: whether to quantize the first convolution.
        head: whether to quantize the classifier.

    Raises:
        UserError: the graph has no convolution, and `stem` is False.
    """
    from onnxruntime import quantization as ort

    methods = {
        "minmax": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
        "percentile": ort.CalibrationMethod.Percentile,
    }

    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _silence_quantizer():
        prepared, kept = Path(folder) / "prepared.onnx", Path(folder) / "ranges.json"
        ort.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        if ranges and _is_ranges_file(ranges):
            kept.write_bytes(ranges.read_bytes())
        else:
            kinds = [*QUANTIZED_OPS, *(HEAD_OPS if head else ())]
            calibrator = ort.create_calibrator(
                str(prepared), kinds, str(Path(folder) / "augmented.onnx"), calibrate_method=methods[method]
            )
            # Histogram methods collect all activations in memory, so they get one clip at a time.
            for batch in clips:
                for part in [batch] if method == "minmax" else np.split(batch, len(batch)):
                    calibrator.collect_data(_BatchReader(part))
            ort.save_tensors_data(calibrator.compute_data(), kept)
            del calibrator
        ort.quantize_static(
            str(prepared),
            str(target),
            None,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=[*QUANTIZED_OPS, *(HEAD_OPS if head else ())],
            nodes_to_exclude=[*keep, *([] if stem else [node.name for node in first_convolutions(graph)])],
            per_channel=True,
            activation_type=ort.QuantType.QInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=methods[method],
            calibration_cache_path=str(kept),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
            },
        )
        if ranges and not _is_ranges_file(ranges):
            _cache(kept, ranges)
    model = remove_qdq_before_add(onnx.load(target))
    properties = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def remove_qdq_before_add(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes, in place, the Q/DQ pair between each Add and a convolution that feeds it.

    TensorRT and OpenVINO fuse a convolution, the addition of the shortcut and a ReLU into one kernel only if there is no
    Q/DQ pair between them. The fused kernel adds before it rounds. If two convolutions feed an Add, one keeps its pair.
    """
    graph = model.graph
    producer_of = producers(graph)
    users: dict[str, int] = defaultdict(int, {value.name: 1 for value in graph.output})
    for node in graph.node:
        for name in node.input:
            users[name] += 1
    for node in [node for node in graph.node if node.op_type == "Add"]:
        for number, name in enumerate(node.input):
            dequantize = producer_of.get(name)
            quantizer = producer_of.get(dequantize.input[0]) if dequantize else None
            convolution = producer_of.get(quantizer.input[0]) if quantizer else None
            if dequantize is None or quantizer is None or convolution is None:
                continue
            kinds = (dequantize.op_type, quantizer.op_type, convolution.op_type)
            if kinds != ("DequantizeLinear", "QuantizeLinear", "Conv"):
                continue
            if users[name] == 1 and users[quantizer.input[0]] == 1:
                node.input[number] = quantizer.input[0]
                graph.node.remove(dequantize)
                graph.node.remove(quantizer)
                break
    drop_unused(graph)
    return model


def convert_to_fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Converts an int8 Q/DQ graph to fp8 (E4M3), in place.

    Activations keep their dynamic ranges: the scales are changed so that the value that was 127 in int8 is 448, the largest
    of E4M3 (Micikevicius et al. 2022). Each weight gets one scale from its largest absolute value, instead of one per
    channel as in int8. The fp8 recipe of NVIDIA's Model Optimizer, FP8_DEFAULT_CFG, does the same. Floats represent small
    channels with about the same relative accuracy as large ones.
    """
    graph = model.graph
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {name: arrays[name] * (127 / _E4M3_MAX) for name in (node.input[1] for node in pairs)}
    for node in pairs:
        if node.op_type == "QuantizeLinear" and (weight := arrays.get(node.input[0])) is not None:
            # From the values, not from the int8 scales: those are 1 for channels of zeros.
            scales[node.input[1]] = np.abs(weight).max() / _E4M3_MAX or np.ones(())
        for attribute in [attribute for attribute in node.attribute if attribute.name == "axis"]:
            node.attribute.remove(attribute)
    zeros = {node.input[2] for node in pairs}
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.name in zeros:
            array = np.zeros((), ml_dtypes.float8_e4m3fn)
        elif tensor.name in scales:
            array = np.asarray(scales[tensor.name], arrays[tensor.name].dtype)
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return model


def fold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores each quantized weight as 8-bit values, in place: a QuantizeLinear node of a constant becomes its result.

    The values are those that the node gives, so the network does not change; its weights take a quarter of the bytes.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in weights]:
        weight, scale, zero = (numpy_helper.to_array(weights[name]) for name in node.input)
        if scale.ndim:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            scale = scale.reshape([-1 if number == axis else 1 for number in range(weight.ndim)])
        integer = zero.dtype == np.int8
        scaled = np.rint(weight / scale) if integer else weight / scale
        low, high = (-128, 127) if integer else (-_E4M3_MAX, _E4M3_MAX)
        stored = np.clip(scaled, low, high).astype(zero.dtype)
        graph.initializer.append(numpy_helper.from_array(stored, node.output[0]))
        graph.node.remove(node)
    drop_unused(graph)
    return model


class _BatchReader:
    """A calibration data reader (ONNX Runtime's interface) of a single batch."""

    def __init__(self, batch: np.ndarray) -> None:
        self._batch: np.ndarray | None = batch

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch, self._batch = self._batch, None
        return None if batch is None else {INPUT: batch}


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes, in place, weights that no node takes."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _cache(found: Path, ranges: Path) -> None:
    """Copies the ranges that were found into the cache, which may be on another file system."""
    try:
        ranges.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(ranges) as temporary:
            temporary.write_bytes(found.read_bytes())
    except OSError as error:
        logger.warning(f"cannot keep the ranges in '{ranges}' ({error.strerror}); the next build calibrates again")


def _is_ranges_file(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8"))["data"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _silence_quantizer() -> Iterator[None]:
    """Suppresses what ONNX Runtime's quantizer writes to the root logger and to stdout. Its errors are exceptions, too."""
    level = logging.root.level
    logging.root.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
