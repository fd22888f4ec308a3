"""Reading the layers of an engine from TensorRT's inspector and log."""

import json
from pathlib import Path

import pytest

from ssv2rt.engines.backends.tensorrt.layers import (
    Layer,
    convolution_counts,
    layers_in_json,
    layers_in_log,
    write_layers,
)


def tensor(name: str, kind: str) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": [8, 64, 16, 56, 56], "Format/Datatype": kind}


# Modeled on the output of TensorRT 10's engine inspector for an engine built with detailed profiling verbosity.
DETAILED = json.dumps(
    {
        "Layers": [
            {
                "Name": "Reformatting CopyNode for Input Tensor 0 to node_conv3d + node_relu",
                "LayerType": "Reformat",
                "Inputs": [tensor("pixels_half", "Row major linear FP16 format")],
                "Outputs": [tensor("Reformatted Input Tensor 0", "Channel major FP16 format where channel % 4 == 0")],
                "ParameterType": "Reformat",
                "Origin": "REFORMAT",
                "TacticValue": "0x00000000000003e8",
                "StreamId": 0,
                "Metadata": "",
            },
            {
                "Name": "node_conv3d + node_relu",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor("Reformatted Input Tensor 0", "Channel major FP16 format where channel % 4 == 0")],
                "Outputs": [tensor("relu", "Channel major FP16 format where channel % 8 == 0")],
                "ParameterType": "Convolution",
                "Kernel": [3, 7, 7],
                "Weights": {"Type": "Half", "Count": 28224},
                "TacticName": "sm80_xmma_fprop_implicit_gemm_indexed_f16f16_f16f32_f32_nhwckrsc_nhwc",
                "Metadata": "[ONNX Layer: node_conv3d]\u001e[ONNX Layer: node_relu]",
            },
            {
                "Name": "layer1.0.conv1.0.weight + QuantizeLinear + node_conv3d_1 + node_relu_1",
                "LayerType": "CaskGemmConvolution",
                "Inputs": [tensor("relu_q", "Int8"), tensor("residual", "Half")],
                "Outputs": [tensor("relu_1_q", "Int8")],
                "Weights": {"Type": "Int8", "Count": 110592},
                "Metadata": "[ONNX Layer: node_conv3d_1]",
            },
            {
                "Name": "node_conv3d_2_myl0_3",
                "LayerType": "correlation",
                "Inputs": [tensor("a", "Int8")],
                "Outputs": [tensor("b", "Float")],
            },
            {
                "Name": "node_conv3d_5_myl0_4",
                "LayerType": "gemm",
                "Inputs": [tensor("c", "Thirty-two wide channel vectorized row major Int8 format")],
                "Outputs": [tensor("d", "Half")],
            },
            {
                "Name": "node_upsample",
                "LayerType": "CaskDeconvolutionV2",
                "Inputs": [tensor("x", "Half")],
                "Outputs": [],
            },
            {
                "Name": "__myl_FcAdd",
                "LayerType": "gemm",
                "Inputs": [tensor("mean", "Half")],
                "Outputs": [tensor("logits_half", "Half")],
                "Metadata": "[ONNX Layer: node_linear]",
            },
        ],
        "Bindings": ["frames", "logits"],
    }
)


def test_convolutions_are_counted_by_input_datatype() -> None:
    assert convolution_counts(layers_in_json(DETAILED)) == {"convolutions": {"INT8": 3, "FP16": 1}}


@pytest.mark.parametrize(
    ("phrase", "precision"),
    [
        ("Int8", "INT8"),
        ("UInt8", "unknown"),
        ("Half", "FP16"),
        ("Float", "FP32"),
        ("BFloat16", "BF16"),
        ("FP8", "FP8"),
        ("Row major linear FP32", "FP32"),
        ("Channel major BF16 format where channel % 8 == 0", "BF16"),
        ("", "unknown"),
    ],
)
@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_all_datatype_names_are_recognized(key: str, phrase: str, precision: str) -> None:
    layer: Layer = {"Name": "c", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x", key: phrase}]}
    assert convolution_counts([layer]) == {"convolutions": {precision: 1}}


def test_layers_without_details_are_not_counted() -> None:
    names = layers_in_json('{"Layers": ["node_conv3d + node_relu"\n,"node_conv3d_1"\n],\n"Bindings": ["frames"]}')
    assert names == ["node_conv3d + node_relu", "node_conv3d_1"]
    assert convolution_counts(names) == {}


def test_json_with_control_characters_and_unexpected_json() -> None:
    assert layers_in_json('{"Layers": [{"Name": "a", "Metadata": "b\x1ec"}]}') == [{"Name": "a", "Metadata": "b\x1ec"}]
    for text in ("", "nothing", "[]", '{"Layers": null}', '{"Layers": [1, null]}'):
        assert layers_in_json(text) == []


LOG = """Layers:
Name: shape_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: node_conv3d_myl0_2, LayerType: correlation, Inputs: [ { Name: relu.1, Dimensions: [-1,4,4,32,32], \
Strides: [16384,1,4096,128,4], Datatype: Half, Format: (NDHWC) Channel major format }], Constants: [ { Name: w, \
Dimensions: [8,4,3,7,7], Strides: [588,1,196,28,4], Datatype: Half, Format: (NDHWC) Channel major format }], \
Outputs: [ { Name: bb1, Dimensions: [-1,8,4,16,16], Strides: [8192,1,2048,128,8], Datatype: Half, Format: (NDHWC) }], \
TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: node_conv3d][ONNX Layer: node_relu]
Name: node_conv3d_1, LayerType: correlation, Inputs: [ { Name: a, Location: Device, Dimensions: [1,40], \
Format/Datatype: Int8 }, { Name: b, Dimensions: [1], Format/Datatype: Int32 }], Outputs: [ { Name: c, Dimensions: [], \
Format/Datatype: Float }], TacticName: x

I/O Tensors:
 Name: frames, IOMode: Input, DataType: UInt8, Dimensions: [-1,4,32,32,3]
"""
"""A log of TensorRT for RTX 1.7 (shortened). The last layer is from TensorRT 10."""


def test_builder_log_is_parsed_into_inspector_format() -> None:
    first, second, third = layers_in_log(LOG)
    assert first == {"Name": "shape_0", "LayerType": "shape_call", "Inputs": [], "Constants": [], "Outputs": []}
    assert isinstance(second, dict) and second["LayerType"] == "correlation"
    assert second["Inputs"] == [{"Name": "relu.1", "Dimensions": [-1, 4, 4, 32, 32], "Format/Datatype": "Half"}]
    assert isinstance(third, dict) and third["Outputs"] == [{"Name": "c", "Dimensions": [], "Format/Datatype": "Float"}]
    assert [entry["Format/Datatype"] for entry in third["Inputs"]] == ["Int8", "Int32"]
    assert convolution_counts([first, second, third]) == {"convolutions": {"FP16": 1, "INT8": 1}}
    assert layers_in_log("") == [] == layers_in_log("Layers:\nsomething else\n")


def test_layers_file_names_its_source(tmp_path: Path) -> None:
    assert write_layers(tmp_path, ["a"], "builder") == "layers.json"
    assert json.loads((tmp_path / "layers.json").read_text()) == {"source": "builder", "Layers": ["a"]}
