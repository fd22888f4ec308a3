"""ONNX files that are exported: both kinds of input give what the engine's graph gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import export_onnx
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.normalization import PRESETS
from ssv2rt.engines.onnx_source import source_of_onnx
from ssv2rt.engines.quantization import quantize
from ssv2rt.export.float_input import split_normalization
from tests.cli import ssv2rt
from tests.engines.conftest import CLIP, LABELS, clips, model_with_random_statistics
from tests.engines.onnx_graphs import ending_in, mean_graph


def run(model: Path | onnx.ModelProto, frames: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"frames": frames})  # type: ignore[no-any-return]


def clips_of(bundle: Bundle) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (3, *bundle.info.input_shape[1:]), np.uint8)


def test_uint8_is_what_the_engine_has(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    done = ssv2rt("export", tiny_bundle.path, "--to", "onnx", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    batch = clips_of(tiny_bundle)
    for found, expected in zip(run(out, batch), run(tiny_bundle.onnx_file, batch), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(facts["labels"]) == list(tiny_bundle.info.labels) and facts["input"].startswith("uint8")
    assert json.loads(facts["clip"])["frames"] == tiny_bundle.info.clip.frames and facts["precision"] == "fp16"
    assert float(json.loads(done.stdout)["largest difference"]) <= 1e-5


def test_float_is_without_the_normalization(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """An fp16 graph rounds pixels to half precision, so the last bit of a pixel may change its outputs a little."""
    out = tmp_path / "m.onnx"
    done = ssv2rt("export", tiny_bundle.path, "--to", "onnx", "--input", "float", "--out", out)
    assert done.returncode == 0 and "(value / 255 - mean) / std" in done.stdout, done.stderr
    model = onnx.load(out)
    (given,) = model.graph.input
    shape = [dim.dim_value or dim.dim_param for dim in given.type.tensor_type.shape.dim]
    frames, size = tiny_bundle.info.clip.frames, tiny_bundle.info.clip.size
    assert given.type.tensor_type.elem_type == TensorProto.FLOAT and shape == ["batch", 3, frames, size, size]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406] and json.loads(facts["std"]) == [0.229, 0.224, 0.225]
    batch = clips_of(tiny_bundle)
    mean, scale = (255 * np.float32([0.485, 0.456, 0.406]), 1 / (255 * np.float32([0.229, 0.224, 0.225])))
    pixels = ((batch.astype(np.float32) - mean) * scale).transpose(0, 4, 1, 2, 3)
    for found, expected in zip(run(model, pixels), run(tiny_bundle.onnx_file, batch), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["resnet2d18-gru", "resnet2d18-latefusion"])
def test_networks_that_see_frames_one_by_one_can_be_split(name: str, tmp_path: Path) -> None:
    export_onnx(model_with_random_statistics(name, 4), tmp_path / "m.onnx", clip=CLIP, labels=LABELS)
    model = onnx.load(tmp_path / "m.onnx")
    for graph in (model, convert_to_half(model)):
        check_split(graph, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_quantized_graphs_can_be_split(tmp_path: Path) -> None:
    export_onnx(model_with_random_statistics(width=4), tmp_path / "m.onnx", clip=CLIP, labels=LABELS)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", [clips(2).numpy()], method="minmax", stem=True)
    check_split(onnx.load(tmp_path / "q.onnx"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_imported_networks_keep_their_own_arithmetic(tmp_path: Path) -> None:
    """The network begins with a multiplication, which is its own and stays."""
    file = ending_in(tmp_path / "m.onnx")
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([3.0]), "three"))
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "three"], ["x3"]))
    model.graph.node[1].input[0] = "x3"
    onnx.save(model, file)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    source = source_of_onnx(file, tmp_path / "labels.txt", normalization=PRESETS["half"])
    source.export(tmp_path / "ours.onnx")
    check_split(onnx.load(tmp_path / "ours.onnx"), (0.45,) * 3, (0.225,) * 3)


def check_split(model: onnx.ModelProto, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    split = split_normalization(model, 4, 32)
    np.testing.assert_allclose((split.mean, split.std), (mean, std), rtol=1e-6)
    batch = clips(2, seed=3).numpy()
    (pixels,) = run(split.normalization, batch)
    center, width = (np.reshape(values, (1, 3, 1, 1, 1)) for values in (mean, std))
    np.testing.assert_allclose(pixels, (batch.transpose(0, 4, 1, 2, 3) / 255 - center) / width, atol=1e-5)
    for found, expected in zip(run(split.network, pixels), run(model, batch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_network_without_normalization_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc")
    source = source_of_onnx(mean_graph(tmp_path / "m.onnx", uint8=True), tmp_path / "labels.txt")
    source.export(tmp_path / "ours.onnx")
    with pytest.raises(UserError, match="take --input uint8"):
        split_normalization(onnx.load(tmp_path / "ours.onnx"), 4, 32)


def test_options_of_other_forms_and_names_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    call = ("export", tiny_bundle.path, "--to", "onnx")
    for arguments, said in (
        (("--out", tmp_path / "m.onnx", "--backend", "tensorrt"), "--to triton"),
        (("--out", tmp_path / "m.pt"), ".onnx"),
        (("--out", tmp_path / "no" / "m.onnx"), "no folder"),
    ):
        done = ssv2rt(*call, *arguments)
        assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())
    done = ssv2rt("export", "int9", "--to", "onnx", "--out", tmp_path / "m.onnx", cwd=tmp_path)
    assert done.returncode == 1 and "no engine or run 'int9'" in done.stderr
