"""`ssv2rt inspect`: layers, types, shapes and MACs are correct, and unreadable files give one-line errors."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ssv2rt.commands.inspect import inspect
from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import BatchProfile
from ssv2rt.engines.bundle import BundleInfo, sha256
from ssv2rt.engines.export import INPUT, EngineModel, export_onnx
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.inspect import describe_graph, engine_layers, list_layers
from ssv2rt.engines.onnx_files import fixed_batch, read_graph, tensors
from ssv2rt.models.clip_model import ClipModel
from tests.engines.conftest import CLIP, LABELS, Narrow, clips, model_with_random_statistics

# Modeled on the documentation of TensorRT's engine inspector, with one kernel of each precision.
ENGINE_LAYERS = {
    "Layers": [
        {"Name": "cast", "LayerType": "Reformat", "Inputs": [{"Name": "frames", "Format/Datatype": "UINT8"}]},
        {
            "Name": "stem",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Format/Datatype": "Half"}],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 1764},
        },
        {
            "Name": "res2 + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "b", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 432},
        },
        {"Name": "res3", "LayerType": "conv3d", "Inputs": [{"Name": "c", "Format/Datatype": "BFloat16"}]},
        "only a name",
    ]
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(inspect, [str(argument) for argument in arguments])


def facts(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))


def refusal(*arguments: object) -> UserError:
    """The error of a command; it must be one line."""
    error = run(*arguments).exception
    assert isinstance(error, UserError), error
    assert "\n" not in str(error)
    return error


@pytest.fixture
def bundle(graphs: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle of an int8 engine as `build-engine` writes it, in runs/one/engines, without training."""
    folder = tmp_path / "runs/one/engines/int8"
    folder.mkdir(parents=True)
    (tmp_path / "runs/one/recipe.toml").touch()
    shutil.copy(graphs["int8half"], folder / "model.onnx")
    (folder / "engine.plan").write_bytes(b"p" * 12_345)
    write_json(folder / "layers.json", ENGINE_LAYERS)
    info = BundleInfo(
        backend="tensorrt",
        backend_version="11.0.0",
        precision="int8",
        target="sm90",
        model="resnet3d18",
        input=INPUT,
        input_shape=("batch", CLIP.frames, CLIP.size, CLIP.size, 3),
        batch=BatchProfile(min=1, best=8, max=32),
        clip=CLIP,
        labels=LABELS,
        weights_sha256="f00d" * 16,
        files={file.name: sha256(file) for file in folder.iterdir()},
        onnx_file="model.onnx",
        engine_file="engine.plan",
        settings={"clips_per_second": {"f16": 123.4}},
        calibration={"clips": 256, "method": "minmax"},
        verification={"by": "tensorrt", "clips": 200, "agreement": 98.5},
        rebuild="ssv2rt build-engine one --int8 --backend tensorrt",
    )
    write_json(folder / "bundle.json", info.model_dump(mode="json"))
    return folder


def floating_operations(model: ClipModel) -> int:
    """Floating-point operations for one clip, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        EngineModel(model).eval()(clips(1))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet3d18", "r2plus1d_18", "i3d", "c3d", "resnet2d18", "resnet2d18-latefusion"])
def test_macs_and_parameters_match_pytorch(name: str, narrow: Narrow, tmp_path: Path) -> None:
    if name != "c3d":
        model, path = narrow(name)
    else:
        model, path = model_with_random_statistics(name, width=4), tmp_path / "m.onnx"
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv3d, torch.nn.Linear)):
                torch.nn.init.uniform_(module.bias, 0.1, 0.2)  # a bias of zeros is not exported
        export_onnx(model, path, clip=CLIP, labels=LABELS)
    totals = describe_graph(read_graph(path))["totals"]
    assert round(2e9 * totals["gmacs"]) == floating_operations(model)
    expected = sum(p.numel() for p in EngineModel(model).parameters())
    assert totals["parameters"] == expected + (8 if name == "c3d" else 0)  # two averaging matrices of 4 values
    assert totals["weight_bytes"] == totals["run_bytes"] == 4 * totals["parameters"]
    assert totals["share_of_macs"] == {"fp32": 1} and not totals["uncounted"]


@pytest.mark.parametrize(("name", "gates"), [("resnet2d18-lstm", 4), ("resnet2d18-gru", 3)])
def test_macs_of_recurrent_layers(name: str, gates: int, narrow: Narrow) -> None:
    layers = list_layers(read_graph(narrow(name)[1]))
    (layer,) = (layer for layer in layers if layer.op in ("LSTM", "GRU"))
    hidden = 32
    assert layer.macs == CLIP.frames * gates * hidden * (hidden + hidden)
    assert layer.parameters == gates * hidden * (hidden + hidden + 2)
    assert layer.weight == (1, gates * hidden, hidden) and layer.name == "recurrent"
    assert next(entry.output for entry in layers if entry.op == "Conv") == (f"{CLIP.frames}*batch", 4, 16, 16)


@pytest.mark.parametrize("name", ["resnet3d18", "i3d", "c3d", "resnet2d18-lstm"])
def test_shapes_match_onnx_runtime(name: str, narrow: Narrow) -> None:
    model = read_graph(narrow(name)[1])
    layers = {layer.node: layer for layer in list_layers(model)}
    names = [node.output[0] for node in model.graph.node if node.name in layers]
    shapes = [layers[node.name].output for node in model.graph.node if node.name in layers]
    infos = tensors(model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 3):
        values = session.run(names, {INPUT: clips(count).numpy()})
        told = [tuple(eval(str(size), {"batch": count}) for size in shape or ()) for shape in shapes]
        assert [value.shape for value in values] == told
        if count == 1:
            assert [value.shape for value in values] == [infos[name].one_clip for name in names]


def test_fixed_batch_gives_the_same_figures_per_clip(graphs: dict[str, Path]) -> None:
    free = read_graph(graphs["fp32"])
    fixed = read_graph(graphs["fp32"])
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 6
    assert (fixed_batch(free), fixed_batch(fixed)) == (None, 6)
    assert [layer.macs for layer in list_layers(fixed)] == [layer.macs for layer in list_layers(free)]
    assert list_layers(fixed)[0].output == (6, 8, 4, 16, 16)


@pytest.mark.parametrize(
    ("name", "stem", "inside"),
    [("fp32", "fp32", "fp32"), ("fp16", "fp16", "fp16"), ("int8", "fp32", "int8"), ("int8half", "fp16", "int8")],
)
def test_layer_precisions_match_the_graph(graphs: dict[str, Path], name: str, stem: str, inside: str) -> None:
    found = describe_graph(read_graph(graphs[name]))
    precisions = [layer["precision"] for layer in found["layers"] if layer["op"] == "Conv"]
    assert precisions == [stem] + [inside] * 19
    assert next(layer["precision"] for layer in found["layers"] if layer["op"] == "Gemm") == stem
    shares = found["totals"]["share_of_macs"]
    assert set(shares) == {stem, inside} and sum(shares.values()) == pytest.approx(1)
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert Counter(layer["op"] for layer in found["layers"]) == {"Conv": 20, "Add": 8, "ReduceMean": 1, "Gemm": 1}
    totals, size = found["totals"], {"fp32": 4, "fp16": 2}[stem]
    weights = sum(
        math.prod(layer["weight"]) for layer in found["layers"] if layer["precision"] == "int8" and layer["weight"]
    )
    assert (
        totals["weight_bytes"] == size * totals["parameters"]
    )  # weights before a Q/DQ pair are stored in floating point
    assert totals["run_bytes"] == size * (totals["parameters"] - weights) + weights


def test_bf16_is_distinguished_from_fp16(graphs: dict[str, Path], tmp_path: Path) -> None:
    onnx.save(convert_to_half(onnx.load(graphs["fp32"]), bfloat16=True), tmp_path / "m.onnx")
    totals = facts(tmp_path / "m.onnx")["graph"]["totals"]
    assert totals["share_of_macs"] == {"bf16": 1} and totals["weight_bytes"] == 2 * totals["parameters"]


def test_inspect_describes_an_engine(bundle: Path) -> None:
    found = facts(bundle)
    about, graph = found["bundle"], found["graph"]
    assert (about["backend"], about["target"], about["precision"]) == ("tensorrt", "sm90", "int8")
    assert about["files"]["engine.plan"] == {"bytes": 12_345, "sha256": sha256(bundle / "engine.plan")}
    assert about["verification"]["agreement"] == 98.5 and about["calibration"]["clips"] == 256
    assert about["engine_layers"]["convolutions"] == {"FP16": 1, "INT8": 1, "BF16": 1}
    assert graph["inputs"] == [{"name": "frames", "dtype": "uint8", "shape": ["batch", 4, 32, 32, 3]}]
    assert graph["outputs"] == [
        {"name": "logits", "dtype": "fp32", "shape": ["batch", 5]},
        {"name": "embedding", "dtype": "fp32", "shape": ["batch", 64]},
    ]
    assert graph["opset"] == {"ai.onnx": 20} and json.loads(graph["metadata"]["labels"]) == list(LABELS)
    shown = run(bundle).stdout
    for text in (
        "tensorrt 11.0.0",
        "1 to 32 clips, best at 8",
        "4 frames of 32x32",
        "5: a, b, c, d, e",
        "f00d",
        "0.01 MB",
        "ssv2rt build-engine one --int8 --backend tensorrt",
        "uint8 [batch, 4, 32, 32, 3]",
        "layer2.0.downsample.0",
        "agreement   98.5",
        "convolutions INT8       1",
    ):
        assert text in shown, text


def test_inspect_finds_the_engine_of_a_run_and_checks_hashes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = bundle.parents[3]
    monkeypatch.chdir(place)
    (place / "runs/latest").symlink_to("one")
    for name in ("one", "runs/one", "runs/one/engines/int8"):
        assert facts(name)["bundle"]["path"] == "runs/one/engines/int8"
    assert facts()["bundle"]["path"] == "runs/one/engines/int8"
    assert facts("runs/one/engines/int8/model.onnx")["bundle"] is None
    with (bundle / "engine.plan").open("ab") as file:
        file.write(b"x")
    assert "its SHA-256 differs; rebuild it with" in str(refusal("one"))


def test_missing_runs_and_files_are_usage_errors(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parents[3])
    for name in ("runs/one/engines/int9", "onee", "model.onnx", "a\0b"):
        error = refusal(name)
        assert isinstance(error, UsageError) and error.exit_code == 2
    assert "no engine, run or ONNX file 'onee'; did you mean 'one'?" in str(refusal("onee"))
    assert str(refusal("x")).endswith("one of the runs in 'runs/': one")
    Path("runs/latest").symlink_to("one")
    assert "'int9'; did you mean 'int8'?; engines of run 'one': int8; give" in str(refusal("int9"))
    shutil.copytree("runs/one/engines/int8", "runs/two/engines/fp16-openvino")
    assert "'fp16'; engines of run 'one': int8; other runs that have one: two; give" in str(refusal("fp16"))


@pytest.mark.parametrize("text", ["", "hello\n", '{"a": 1}', "\0" * 999, "<net><layers/></net>"])
def test_files_that_are_not_onnx_are_refused(tmp_path: Path, text: str) -> None:
    for name in ("model.onnx", "notes.txt", "graph.json"):
        (tmp_path / name).write_text(text)
        error = refusal(tmp_path / name)
        assert f"'{tmp_path / name}' is not an ONNX graph" in str(error) and error.exit_code == 1
        assert "give an .onnx file" in str(error)


def test_a_folder_without_an_engine_is_refused(tmp_path: Path, bundle: Path) -> None:
    for folder in (tmp_path, bundle.parent):
        error = refusal(folder)
        assert "holds no bundle.json and no run; give an engine's folder" in str(error) and error.exit_code == 1
    (tmp_path / "recipe.toml").touch()
    assert "has no engine yet" in str(refusal(tmp_path)) and "make one with" in str(refusal(tmp_path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_files_are_refused(graphs: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    whole = graphs["fp32"].read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    (tmp_path / "cut.onnx").write_bytes(whole[:length])
    with pytest.raises(UserError, match="is not an ONNX graph that can be read"):
        read_graph(tmp_path / "cut.onnx")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=2000))
def test_arbitrary_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.onnx"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not an ONNX graph that can be read"):
        read_graph(path)


def with_weights_beside(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.load(source), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_external_data_is_read(graphs: dict[str, Path], tmp_path: Path) -> None:
    path = with_weights_beside(graphs["fp32"], tmp_path)
    found, inside = facts(path)["graph"], facts(graphs["fp32"])["graph"]
    assert found["layers"] == inside["layers"] and found["totals"] == inside["totals"]
    assert found["files"] == {name: (tmp_path / name).stat().st_size for name in ("m.onnx", "m.data")}


def test_external_data_missing_or_outside_the_folder_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    path = with_weights_beside(graphs["fp32"], tmp_path / "folder")
    beside = path.with_name("m.data")
    whole = beside.read_bytes()
    beside.write_bytes(whole[:100])
    assert "is not an ONNX graph that can be read" in str(refusal(path))
    beside.rename(tmp_path / "m.data")
    assert f"its weights are in '{beside}', which is missing; copy that file, too" in str(refusal(path))
    beside.symlink_to(tmp_path / "m.data")
    assert "only plain files in its own folder are read" in str(refusal(path))
    model = onnx.load(path, load_external_data=False)
    for place in ("../m.data", str(tmp_path / "m.data"), ""):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = place if entry.key == "location" else entry.value
        onnx.save(model, path)
        assert f"are in '{place}', and only plain files in its own folder are read" in str(refusal(path))


def test_control_characters_in_names_are_not_printed(graphs: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(graphs["fp32"])
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.initializer[0].name, old = "a\x1b[2J[bold].weight", model.graph.initializer[0].name
    for node in model.graph.node:
        node.input[:] = [model.graph.initializer[0].name if name == old else name for name in node.input]
    convolution.name = "\x1b]0;owned\a"
    onnx.helper.set_model_props(model, {"note\x1b[31m": "[red]text[/red]"})
    onnx.save(model, tmp_path / "m.onnx")
    result = run(tmp_path / "m.onnx")
    assert result.exit_code == 0 and "\x1b" not in result.stdout and "[red]text[/red]" in result.stdout


def test_external_graphs_are_described(tmp_path: Path) -> None:
    """With features that our own graphs do not have: a dynamic height, weights without module names, an unknown operator."""
    x = onnx.helper.make_tensor_value_info("x", 1, ["n", 3, "height", 8])
    y = onnx.helper.make_tensor_value_info("y", 1, ["n", None])
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "123")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "123"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Strange", ["a"], ["b"], domain="elsewhere"),
        onnx.helper.make_node("Add", ["b", "b"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [weight])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("elsewhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    found = facts(tmp_path / "m.onnx")["graph"]
    convolution, addition = found["layers"]
    assert convolution["name"] == "a" and convolution["output"] == ["n", 4, "?", 8]
    assert convolution["macs"] is None and found["totals"]["uncounted"] == 1
    assert (addition["precision"], addition["op"]) == ("?", "Add")
    assert found["opset"] == {"ai.onnx": 20, "elsewhere": 1}
    assert "1 layers whose shapes are not known" in run(tmp_path / "m.onnx").stdout


def test_engine_layers_without_details_are_accepted(tmp_path: Path) -> None:
    for text, count in (("", 0), ('{"Layers": ["a", "b"]}', 2)):
        (tmp_path / "layers.json").write_text(text)
        found = engine_layers(tmp_path / "layers.json")
        assert found["layers"] == count and "convolutions" not in found
