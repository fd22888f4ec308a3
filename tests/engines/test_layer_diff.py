"""Layer comparison: errors are correct, wrong layers are found, and the memory limit does not change the errors."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from ssv2rt.core.errors import UserError
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.layer_diff import LayerComparison, compare_layers
from ssv2rt.engines.layer_diff_table import FILES, show_worst, write_layers
from ssv2rt.engines.verify import OnnxRunner
from tests.engines.conftest import clips

BATCHES = [clips(3, seed=5).numpy(), clips(2, seed=6).numpy()]


@pytest.fixture(scope="module")
def int8(graphs: dict[str, Path]) -> LayerComparison:
    return compare_layers(graphs["fp32"], graphs["int8"], BATCHES)


def test_identical_graphs_have_no_error(graphs: dict[str, Path]) -> None:
    same = compare_layers(graphs["fp32"], graphs["fp32"], BATCHES)
    assert len(same.layers) == 29 and not same.unmatched and same.clips == 5
    assert all(layer.relative_error == layer.largest_difference == 0 for layer in same.layers)
    assert all(layer.sqnr_db == math.inf and layer.as_dict()["sqnr_db"] is None for layer in same.layers)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("fp16", 1e-5, 5e-3), ("int8", 1e-3, 0.2), ("int8half", 1e-3, 0.2)]
)
def test_all_layers_are_compared_in_every_precision(
    graphs: dict[str, Path], name: str, least: float, most: float
) -> None:
    found = compare_layers(graphs["fp32"], graphs[name], BATCHES)
    assert len(found.layers) == 29 and not found.unmatched
    assert [layer.op for layer in found.layers].count("Conv") == 20
    assert least < max(layer.relative_error for layer in found.layers) < most
    assert {layer.block for layer in found.layers} >= {"stem", "layer1.0", "layer4.1", "head"}


def test_error_of_the_last_layer_is_that_of_the_logits(graphs: dict[str, Path], int8: LayerComparison) -> None:
    ours, theirs = (
        np.concatenate([OnnxRunner(graphs[name])(clips(n, seed=s)).numpy() for n, s in ((3, 5), (2, 6))])
        for name in ("fp32", "int8")
    )
    expected = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
    last = int8.layers[-1]
    assert last.name == "head" and last.op == "Gemm"
    assert last.relative_error == pytest.approx(expected, rel=1e-5)
    assert last.sqnr_db == pytest.approx(-20 * math.log10(expected), rel=1e-5)
    assert last.largest_difference == pytest.approx(abs(ours - theirs).max(), rel=1e-5)
    assert last.largest_value == pytest.approx(abs(ours).max(), rel=1e-5)
    assert last.inherited_error == max(layer.relative_error for layer in int8.layers if layer.node == "node_add_385")


@pytest.mark.parametrize("memory", [1, 30_000, 100_000])
def test_memory_limit_does_not_change_the_errors(graphs: dict[str, Path], int8: LayerComparison, memory: int) -> None:
    found = compare_layers(graphs["fp32"], graphs["int8"], np.concatenate(BATCHES)[:, None], memory=memory)
    assert [layer.node for layer in found.layers] == [layer.node for layer in int8.layers]
    for ours, theirs in zip(found.layers, int8.layers, strict=True):
        assert ours.relative_error == pytest.approx(theirs.relative_error, rel=1e-3)
        assert ours.largest_difference == pytest.approx(theirs.largest_difference, rel=1e-3)


def scaled(source: Path, target: Path, weight: str, factor: float) -> Path:
    """A copy of a graph with one weight scaled by a factor."""
    model = onnx.load(source)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), weight))
    onnx.save(model, target)
    return target


def test_a_wrong_layer_is_found(graphs: dict[str, Path], tmp_path: Path) -> None:
    wrong = scaled(graphs["fp32"], tmp_path / "m.onnx", "backbone.layer2.1.conv1.0.weight", 1.5)
    found = compare_layers(graphs["fp32"], wrong, BATCHES)
    number = next(n for n, layer in enumerate(found.layers) if layer.name == "layer2.1.conv1.0")
    assert all(layer.relative_error == 0 for layer in found.layers[:number])
    assert found.layers[number].relative_error > 0.1 and found.layers[number].inherited_error == 0
    after = found.layers[number + 1 :]
    assert all(layer.inherited_error > 0 for layer in after if layer.block != "layer2.1")


def test_overflowing_layers_come_first_and_are_written(graphs: dict[str, Path], tmp_path: Path) -> None:
    weight = "backbone.layer2.1.conv1.0.weight"
    large = scaled(graphs["fp16"], tmp_path / "m.onnx", weight, 3e4)
    found = compare_layers(graphs["fp32"], large, BATCHES)
    worst = found.worst(1)[0]
    assert not worst.finite and worst.relative_error == math.inf and worst.sqnr_db == -math.inf
    write_layers(found, tmp_path)
    written = json.loads((tmp_path / FILES[0]).read_text(), parse_constant=lambda text: pytest.fail(text))
    rows = {row["node"]: row for row in written["layers"]}
    assert rows[worst.node]["relative_error"] is None and rows[worst.node]["finite"] is False


def test_layers_are_matched_by_node_or_output_name(graphs: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(graphs["int8"])
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[3].name = "another"
    gone = convolutions[5]
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == gone.output[0] else name for name in node.input]
    node_before, gone.name, gone.output[0] = gone.name, "renamed", "renamed"
    onnx.save(model, tmp_path / "m.onnx")
    found = compare_layers(graphs["fp32"], tmp_path / "m.onnx", BATCHES[:1])
    assert found.unmatched == (node_before,) and len(found.layers) == 28


def test_json_csv_and_table(int8: LayerComparison, tmp_path: Path) -> None:
    write_layers(int8, tmp_path)
    written = json.loads((tmp_path / "layers-debug.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "layers-debug.csv").read_text())))
    assert written["clips"] == 5 and len(written["layers"]) == len(rows) == 29
    for row, layer in zip(rows, written["layers"], strict=True):
        assert (row["name"], row["block"], float(row["relative_error"])) == (
            layer["name"],
            layer["block"],
            layer["relative_error"],
        )
    out = io.StringIO()
    show_worst(int8, 3, Console(file=out))
    shown = [line for line in out.getvalue().splitlines() if "%" in line]
    assert len(shown) == 3 and int8.worst(1)[0].name in shown[0]
    assert int8.worst(29)[0].relative_error == max(layer.relative_error for layer in int8.layers)


def test_control_characters_in_names_are_not_printed(int8: LayerComparison) -> None:
    layers = tuple(replace(layer, name="\x1b[2J[bold]a", op="\x1b]0;owned\a") for layer in int8.layers)
    out = io.StringIO()
    show_worst(replace(int8, layers=layers), 3, Console(file=out, force_terminal=True, width=110, color_system=None))
    assert "\x1b" not in out.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "") and "[bold]a" in out.getvalue()


def test_incomparable_graphs_are_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips to compare layers on"):
        compare_layers(graphs["fp32"], graphs["fp16"], [])
    onnx.save(convert_to_half(onnx.load(graphs["fp32"]), bfloat16=True), tmp_path / "bf16.onnx")
    with pytest.raises(UserError, match="ONNX Runtime cannot run"):
        compare_layers(graphs["fp32"], tmp_path / "bf16.onnx", BATCHES)
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["batch", 2]) for name in "xy")
    other = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(other), tmp_path / "relu.onnx")
    with pytest.raises(UserError, match="has no layer of"):
        compare_layers(graphs["fp32"], tmp_path / "relu.onnx", BATCHES)
