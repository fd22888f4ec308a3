"""Concatenations in int8 engines of OpenVINO, which alone computes some of them wrong."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import cosine_similarity

from ssv2rt.core.recipes import Engine
from ssv2rt.engines.backends import openvino
from ssv2rt.engines.base import Graph
from ssv2rt.engines.concatenations import protect_concatenations
from ssv2rt.engines.quantization import quantize
from ssv2rt.engines.source import source_of_model
from ssv2rt.engines.verify import OnnxRunner
from tests.engines.conftest import CLIP, LABELS, Narrow, clips


def test_an_int8_engine_of_a_network_with_branches_has_the_features_of_its_graph(
    narrow: Narrow, tmp_path: Path
) -> None:
    import openvino as ov

    quantize(narrow("i3d")[1], tmp_path / "model.onnx", [clips(8, 1).numpy()], method="minmax")
    built = openvino.build(Graph(tmp_path / "model.onnx", None), Engine(precision="int8"))
    batch = clips(4)
    expected = OnnxRunner(tmp_path / "model.onnx").start(batch)().embedding
    engine = ov.Core().compile_model(tmp_path / built.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for part in (batch, batch[:1]):
        found = torch.from_numpy(engine(part.numpy())["embedding"])
        assert expected is not None and cosine_similarity(found, expected[: len(part)]).min() > 0.98


@pytest.mark.slow
def test_openvino_runs_temporal_shifts_as_they_are(narrow: Narrow, tmp_path: Path) -> None:
    """In int8 it needs unsigned concatenations, and gives what the folded network gives in PyTorch."""
    import openvino as ov

    model, folded = narrow("tsm-r50")
    source_of_model(model, "tsm", LABELS, CLIP).export_of(openvino)(tmp_path / "float.onnx")
    found, others = (
        sum(node.op_type == "Concat" for node in onnx.load(path).graph.node)
        for path in (tmp_path / "float.onnx", folded)
    )
    assert (found, others) == (15, 0), "in all blocks with 8 channels or more"
    quantize(tmp_path / "float.onnx", tmp_path / "model.onnx", [clips(8, 1).numpy()], method="minmax")
    protected = protect_concatenations(onnx.load(tmp_path / "model.onnx"))
    assert not any(node.op_type == "LeakyRelu" for node in protected.graph.node)
    built = openvino.build(Graph(tmp_path / "model.onnx", None), Engine(precision="int8"))
    batch = clips(4)
    with torch.inference_mode():
        expected = model.features(batch)
    engine = ov.Core().compile_model(tmp_path / built.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for part in (batch, batch[:1]):
        features = torch.from_numpy(engine(part.numpy())["embedding"])
        assert cosine_similarity(features, expected[: len(part)]).min() > 0.98


def concatenation(before: str, after: str, scale: float = 4 / 127) -> onnx.ModelProto:
    """Two inputs (N, 4, 8, 8), concatenated, quantized and convolved to (N, 8, 8, 8).

    Args:
        before: operator on each input.
        after: operator on their concatenation.
        scale: of the quantization.
    """
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "scale": np.float32(scale).reshape(()),
        "zero": np.zeros((), np.int8),
    }
    nodes = [
        helper.make_node(before, ["a"], ["a1"]),
        helper.make_node(before, ["b"], ["b1"]),
        helper.make_node("Concat", ["a1", "b1"], ["c"], axis=1),
        helper.make_node(after, ["c"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["v"], axis=0),
        helper.make_node("Conv", ["x", "v"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 8, 8]) for name in "ab"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 8, 8])
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("before", "after", "unsigned"),
    [
        ("Identity", "Identity", False),
        ("Relu", "Identity", True),
        ("Identity", "Relu", True),
        ("Sigmoid", "Identity", True),
        ("Tanh", "Identity", False),
    ],
)
def test_concatenations_are_right_with_and_without_negative_values(before: str, after: str, unsigned: bool) -> None:
    import onnxruntime
    import openvino as ov

    model = concatenation(before, after)
    rng = np.random.default_rng(1)
    inputs = {name: rng.normal(size=(2, 4, 8, 8)).astype(np.float32) for name in "ab"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, inputs)
    mended = protect_concatenations(model)
    assert (np.uint8 in {numpy_helper.to_array(tensor).dtype.type for tensor in mended.graph.initializer}) == unsigned
    assert ("LeakyRelu" in {node.op_type for node in mended.graph.node}) != unsigned
    engine = ov.Core().compile_model(
        ov.Core().read_model(mended.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.abs(engine(inputs)["y"] - expected).max() < 1e-3 * np.abs(expected).max()


def test_graphs_without_concatenations_stay_as_they_are(graphs: dict[str, Path]) -> None:
    before = onnx.load(graphs["int8"]).graph
    after = protect_concatenations(onnx.load(graphs["int8"])).graph
    assert before.node == after.node and before.initializer == after.initializer
