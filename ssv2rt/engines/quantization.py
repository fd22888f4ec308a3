"""From the fp32 graph to int8, and on to fp8: symmetric Q/DQ pairs around what runs in integers, by ONNX Runtime's quantiser.

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

from ssv2rt.core.atomic_files import flush_to_disk
from ssv2rt.core.errors import UserError
from ssv2rt.engines.export import INPUT

KINDS = ("Conv", "Add")
"""What runs in integers."""
HEAD = ("Gemm", "MatMul")
"""What a classifier is."""
_E4M3_MAX = 448.0


def quantise(
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

    Weights are quantised per channel, activations per tensor; biases stay as they are. The first convolution and the
    classifier keep their precision unless told otherwise: they see raw pixels and make the decision, at little cost.

    Args:
        source: fp32 ONNX file made by `export_onnx`.
        target: file to write.
        clips: calibration batches, uint8 (N, T, S, S, 3); not looked at where `ranges` is there already.
        method: 'minmax', 'entropy' or 'percentile': how a range follows from what was seen.
        ranges: file that keeps what calibration finds, for another call with the same graph, clips and method. A damaged
            one is made anew.
        keep: names of nodes of the source that keep their precision, too.
        stem: whether the first convolution becomes int8.
        head: whether the classifier does.
    """
    from onnxruntime import quantization as ort

    methods = {
        "minmax": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
        "percentile": ort.CalibrationMethod.Percentile,
    }

    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        prepared, kept = Path(folder) / "prepared.onnx", Path(folder) / "ranges.json"
        ort.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        if ranges and _are_ranges(ranges):
            kept.write_bytes(ranges.read_bytes())
        else:
            kinds = [*KINDS, *(HEAD if head else ())]
            calibrator = ort.create_calibrator(
                str(prepared), kinds, str(Path(folder) / "augmented.onnx"), calibrate_method=methods[method]
            )
            # Histograms need all values of all layers: a clip at a time, for the memory.
            for batch in clips:
                for part in [batch] if method == "minmax" else np.split(batch, len(batch)):
                    calibrator.collect_data(_Reader(part))
            ort.save_tensors_data(calibrator.compute_data(), kept)
            del calibrator
        ort.quantize_static(
            str(prepared),
            str(target),
            None,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=[*KINDS, *(HEAD if head else ())],
            nodes_to_exclude=[*keep, *([] if stem else [_first_convolution(graph)])],
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
        if ranges and not _are_ranges(ranges):
            ranges.parent.mkdir(parents=True, exist_ok=True)
            flush_to_disk(kept)
            kept.replace(ranges)
    model = join_adds(onnx.load(target))
    properties = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def join_adds(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes the Q/DQ pair away between an Add and one convolution before it, in place.

    A convolution, the addition of a shortcut and a ReLU are then one kernel, which adds before it rounds: TensorRT and
    OpenVINO both fuse them only if nothing stands between. Of an Add of two convolutions one keeps its pair.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, int] = defaultdict(int, {value.name: 1 for value in graph.output})
    for node in graph.node:
        for name in node.input:
            users[name] += 1
    for node in [node for node in graph.node if node.op_type == "Add"]:
        for number, name in enumerate(node.input):
            restored = makers.get(name)
            rounded = makers.get(restored.input[0]) if restored else None
            maker = makers.get(rounded.input[0]) if rounded else None
            if restored is None or rounded is None or maker is None:
                continue
            kinds = (restored.op_type, rounded.op_type, maker.op_type)
            if kinds != ("DequantizeLinear", "QuantizeLinear", "Conv"):
                continue
            if users[name] == 1 and users[rounded.input[0]] == 1:
                node.input[number] = rounded.input[0]
                graph.node.remove(restored)
                graph.node.remove(rounded)
                break
    _drop_unused(graph)
    return model


def to_fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 graph with 8-bit floats (E4M3) in the place of integers, in place.

    The ranges of activations are those of int8: what was 127 becomes 448, the largest that E4M3 has (Micikevicius et al.
    2022). A weight has one scale, from its largest value, where in int8 it has one for each channel. So has the recipe
    of NVIDIA's Model Optimizer for fp8, FP8_DEFAULT_CFG, and floats keep small channels about as exactly as large ones.
    """
    graph = model.graph
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {name: arrays[name] * (127 / _E4M3_MAX) for name in (node.input[1] for node in pairs)}
    for node in pairs:
        if node.op_type == "QuantizeLinear" and (weight := arrays.get(node.input[0])) is not None:
            # Not from the scales of the channels, which are 1 where all is zero.
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


class _Reader:
    """One batch, as ONNX Runtime asks for it."""

    def __init__(self, batch: np.ndarray) -> None:
        self._batch: np.ndarray | None = batch

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch, self._batch = self._batch, None
        return None if batch is None else {INPUT: batch}


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _first_convolution(graph: onnx.GraphProto) -> str:
    for node in graph.node:
        if node.op_type == "Conv":
            return node.name
    raise UserError("the graph has no convolution, behind which lower precision begins; take --fp32")


def _are_ranges(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8"))["data"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
