"""Blocks of ONNX nodes: every layer is in exactly one block, in graph order, and in the same one in every precision."""

from itertools import chain
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.engines.graph_nodes import node_name
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.node_origin import COMPUTE_OPS, PRODUCT_OPS, block_of, blocks
from ssv2rt.engines.onnx_files import read_graph
from ssv2rt.engines.quantization import quantize
from tests.engines.conftest import Narrow, clips

RESIDUAL = [f"layer{stage}.{number}" for stage in (1, 2, 3, 4) for number in (0, 1)]
EXPECTED = {
    "resnet3d18": ["stem", *RESIDUAL, "head"],
    "r2plus1d_18": ["stem", *RESIDUAL, "head"],
    "i3d": [
        "stem",
        *(f"stages.mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")),
        "head",
    ],
    "c3d": [
        *(f"convolutions.{number}" for number in (0, 3, 6, 8, 11, 13, 16, 18)),
        *("node_matmul", "node_matmul_1"),  # average pooling to 4x4, whose matrices belong to no module
        *("connected.0", "connected.3", "head"),
    ],
    "resnet2d18-lstm": ["stem", *RESIDUAL, "recurrent", "head"],
    "resnet2d18-latefusion": ["stem", *RESIDUAL, "fusion.0", "head"],
}


@pytest.fixture(scope="module", params=EXPECTED)
def exported(request: pytest.FixtureRequest, narrow: Narrow) -> tuple[str, Path]:
    return request.param, narrow(request.param)[1]


def block_by_node(model: onnx.ModelProto, kinds: tuple[str, ...]) -> dict[str, str]:
    wanted = {node_name(node) for node in model.graph.node if node.op_type in kinds}
    return {name: block for block, names in blocks(model).items() for name in names if name in wanted}


def test_every_layer_is_in_one_block_in_graph_order(exported: tuple[str, Path]) -> None:
    name, path = exported
    model = read_graph(path)
    found = blocks(model)
    assert list(found) == EXPECTED[name]
    layers = [node.name for node in model.graph.node if node.op_type in COMPUTE_OPS]
    assert sorted(chain(*found.values())) == sorted(layers)
    positions = {layer: number for number, layer in enumerate(layers)}
    starts = [positions[names[0]] for names in found.values()]
    assert starts == sorted(starts)
    for block, names in found.items():
        assert [positions[n] for n in names] == list(range(positions[names[0]], positions[names[-1]] + 1)), block


def test_blocks_are_the_same_in_every_precision(exported: tuple[str, Path], tmp_path: Path) -> None:
    _, path = exported
    model = read_graph(path)
    quantized = tmp_path / "int8.onnx"
    quantize(path, quantized, [clips(2).numpy()], method="minmax")
    other = read_graph(quantized)
    for graph in (convert_to_half(model), convert_to_half(model, bfloat16=True), other, convert_to_half(other)):
        kinds = (*PRODUCT_OPS, "Add")  # preprocessing for int8 renames the weights of recurrent layers
        assert block_by_node(graph, kinds) == block_by_node(model, kinds)


def test_blocks_are_found_without_metadata(exported: tuple[str, Path]) -> None:
    _, path = exported
    model = read_graph(path)
    expected = block_by_node(model, (*PRODUCT_OPS, "Add"))
    for node in model.graph.node:
        del node.metadata_props[:]
    assert block_by_node(model, (*PRODUCT_OPS, "Add")) == expected


def test_layers_of_unknown_origin_are_separate_blocks(narrow: Narrow) -> None:
    model = read_graph(narrow("resnet3d18")[1])
    new = {tensor.name: f"onnx::Conv_{number}" for number, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.input[:] = [new.get(name, name) for name in node.input]
    found = block_by_node(model, PRODUCT_OPS)
    assert list(found) == list(found.values()) and len(found) == 21


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("layer2.0.conv2.0", "layer2.0"),
        ("layer1.1.conv1.0.3", "layer1.1"),
        ("stem.3.0", "stem"),
        ("stages.mixed_3b.first.1.0", "stages.mixed_3b"),
        ("convolutions.18", "convolutions.18"),
        ("slow.layer3.2.conv1", "slow.layer3.2"),
        ("fast.stem.0", "fast.stem"),
        ("encoder.layers.11.attention.query", "encoder.layers.11"),
        ("head", "head"),
    ],
)
def test_block_of_is_a_prefix_of_the_module_path(module: str, block: str) -> None:
    assert block_of(module) == block


@given(st.lists(st.sampled_from(["stem", "layer1", "conv", "0", "1", "17", "mixed_3b"]), min_size=1).map(".".join))
def test_block_of_any_path_is_a_prefix_and_idempotent(module: str) -> None:
    block = block_of(module)
    assert block and f"{module}.".startswith(f"{block}.")
    assert block_of(block) == block
