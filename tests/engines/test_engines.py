"""Engines: every precision matches PyTorch, bundles are complete, and unsuitable bundles are refused."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Calibration, Clip, Data, EngineRecipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.build import build_engine
from ssv2rt.engines.bundle import Bundle, open_bundle
from ssv2rt.engines.calibration import Clips, spread_over_classes
from ssv2rt.engines.export import export_onnx
from ssv2rt.engines.onnx_files import declared_tensor
from ssv2rt.engines.precision import _ranges_cache_file
from ssv2rt.engines.quantization import convert_to_fp8, quantize
from ssv2rt.engines.verify import OnnxRunner
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import model_names
from ssv2rt.models.weights import load_trained
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.samplers import evaluation_batches
from ssv2rt.scoring.worker import make_scorer
from tests.engines.conftest import CLIP, LABELS, Narrow, clips, features

FAST_MODELS = ("resnet3d18", "resnet2d50", "c3d", "r2plus1d_18", "resnet2d18-lstm", "resnet2d18-gru")
"""One model for each kind of layer. The other models are slow tests."""


@pytest.mark.parametrize(
    "name", [name if name in FAST_MODELS else pytest.param(name, marks=pytest.mark.slow) for name in model_names()]
)
def test_every_model_exports_and_matches_pytorch(name: str, narrow: Narrow) -> None:
    model, path = narrow(name)
    session = onnxruntime.InferenceSession(path)
    with torch.inference_mode():
        for count in (1, 3):
            expected = model(clips(count)).numpy()
            logits, embedding = session.run(["logits", "embedding"], {"frames": clips(count).numpy()})
            assert abs(logits - expected).max() < 1e-4 * max(1, abs(expected).max())
            expected = features(model, clips(count)).numpy()
            assert embedding.shape == expected.shape == (count, model.head.in_features)
            assert abs(embedding - expected).max() < 1e-4 * max(1, abs(expected).max())


def test_exported_graph_structure(graphs: dict[str, Path]) -> None:
    for path in graphs.values():
        model = onnx.load(path)
        ports = {
            value.name: (value.type.tensor_type.elem_type, declared_tensor(value).shape)
            for value in (*model.graph.input, *model.graph.output)
        }
        assert ports == {
            "frames": (onnx.TensorProto.UINT8, ("batch", 4, 32, 32, 3)),
            "logits": (onnx.TensorProto.FLOAT, ("batch", 5)),
            "embedding": (onnx.TensorProto.FLOAT, ("batch", 64)),
        }
        assert [node.op_type for node in model.graph.node if "frames" in node.input] == ["Cast"]
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        assert b"/" not in b"".join(p.value.encode() for n in model.graph.node for p in n.metadata_props)  # no paths
        assert json.loads({p.key: p.value for p in model.metadata_props}["labels"]) == list(LABELS)


def test_half_graphs_have_no_fp32_weights_after_normalization(graphs: dict[str, Path]) -> None:
    for name in ("fp16", "int8half"):
        floats = [t for t in onnx.load(graphs[name]).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert sum(np.prod(t.dims) for t in floats) <= 6  # mean and scale of three color channels
    assert graphs["fp16"].stat().st_size < 0.6 * graphs["fp32"].stat().st_size


def test_all_convolutions_but_the_first_are_quantized(graphs: dict[str, Path]) -> None:
    graph = onnx.load(graphs["int8"]).graph
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [all(makers[n].op_type == "DequantizeLinear" for n in c.input[:2] if n in makers) for c in convolutions]
    assert len(convolutions) == 20 and quantized == [False] + [True] * 19
    adds = [node for node in graph.node if node.op_type == "Add"]
    assert len(adds) == 8
    # No Q/DQ pair is between a convolution and its Add, so that both and the ReLU can be fused into one kernel.
    for node in adds:
        assert sorted(makers[name].op_type for name in node.input) == ["Conv", "DequantizeLinear"]
    channels = {t.name: t.dims[0] for t in graph.initializer if t.name.endswith(".weight")}
    scales = {t.name: list(t.dims) for t in graph.initializer}
    for node in convolutions[1:]:  # one scale per channel for weights, and one per tensor for activations
        restored, pixels = makers[node.input[1]], makers[node.input[0]]
        weight = makers[restored.input[0]].input[0]
        assert scales[restored.input[1]] == [channels[weight]] and scales[pixels.input[1]] == []
    zero_points = [t for t in graph.initializer if t.name.endswith("zero_point")]
    assert zero_points and all(not onnx.numpy_helper.to_array(t).any() for t in zero_points)  # symmetric
    assert Counter(node.op_type for node in graph.node)["Gemm"] == 1


@pytest.mark.parametrize(("name", "bound"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1), ("int8half", 0.1)])
def test_graphs_match_pytorch_in_every_precision(
    model: ClipModel, graphs: dict[str, Path], name: str, bound: float
) -> None:
    with torch.inference_mode():
        expected = model(clips(5, seed=99)), model.features(clips(5, seed=99))
    for ours, theirs in zip(OnnxRunner(graphs[name]).start(clips(5, seed=99))(), expected, strict=True):
        assert ours is not None and ours.shape == theirs.shape and ours.dtype == torch.float32
        assert (ours - theirs).abs().max() / theirs.abs().max() < bound


def test_fp8_error_is_small_and_openvino_refuses_fp8(
    model: ClipModel, graphs: dict[str, Path], tiny_run: Run, tiny_set: Path, tmp_path: Path
) -> None:
    onnx.save(convert_to_fp8(onnx.load(graphs["int8"])), tmp_path / "fp8.onnx")
    with torch.inference_mode():
        expected = model(clips(5, seed=99))
    error = (OnnxRunner(tmp_path / "fp8.onnx")(clips(5, seed=99)) - expected).abs().max() / expected.abs().max()
    assert error < 0.2  # three bits of mantissa
    with pytest.raises(
        UserError, match=r"openvino builds fp32, bf16, fp16, int8, not fp8; for that take tensorrt, tens"
    ):
        build_engine(tiny_run, load_engine_recipe("fp8"), "openvino", open_manifest(tiny_set))


def test_weight_scales_are_per_tensor_in_fp8_and_per_channel_in_int8(graphs: dict[str, Path], tmp_path: Path) -> None:
    some = [clips(4).numpy()]
    quantize(graphs["fp32"], tmp_path / "all.onnx", some, method="minmax", stem=True, head=True)
    for path, count in ((graphs["int8"], 19), (tmp_path / "all.onnx", 21)):
        int8 = onnx.load(path)
        fp8 = convert_to_fp8(onnx.load(path))
        onnx.checker.check_model(fp8, full_check=True)
        before, after = weight_scales(int8), weight_scales(fp8)
        assert before.keys() == after.keys() and len(after) == count
        for name, (weight, scale, zero, axes) in before.items():
            channels = np.abs(weight).reshape(len(weight), -1).max(1)
            assert axes == [0, 0] and scale.shape == zero.shape == (len(weight),) and zero.dtype == np.int8, name
            assert np.allclose(scale, channels / 127, rtol=1e-6), name
        for name, (weight, scale, zero, axes) in after.items():
            assert not axes and scale.shape == zero.shape == (), name
            assert zero.dtype == ml_dtypes.float8_e4m3fn and zero == 0, name
            assert scale.dtype == np.float32 and scale == pytest.approx(np.abs(weight).max() / 448, rel=1e-6), name
            assert np.array_equal(weight, before[name][0]), name
        # The input has one scale in both, for the same range.
        ours, theirs = ({t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (fp8, int8))
        activations = {n.input[1] for n in fp8.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in ours}
        assert len(activations) >= 19
        for name in activations:
            assert ours[name].shape == () and ours[name] * 448 == pytest.approx(theirs[name] * 127, rel=1e-6), name


def weight_scales(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]]:
    """For each quantized weight: its values, scale, zero point, and the axes of its Q and DQ nodes."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    users = {name: node for node in model.graph.node for name in node.input}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in arrays:
            restored = users[node.output[0]]
            assert restored.op_type == "DequantizeLinear" and restored.input[1:] == node.input[1:]
            axes = [attribute.i for n in (node, restored) for attribute in n.attribute if attribute.name == "axis"]
            weight, scale, zero = (arrays[name] for name in node.input)
            found[node.input[0]] = weight, scale, zero, axes
    return found


@pytest.mark.parametrize("channels", [[2], range(8)])
def test_zero_channels_do_not_change_fp8_weight_scales(
    graphs: dict[str, Path], tmp_path: Path, channels: Iterable[int]
) -> None:
    model = onnx.load(graphs["fp32"])
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][1]
    tensor = next(t for t in model.graph.initializer if t.name == convolution.input[1])
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[list(channels)] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "fp32.onnx")
    quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", [clips(4).numpy()], method="minmax")
    onnx.save(convert_to_fp8(onnx.load(tmp_path / "int8.onnx")), tmp_path / "fp8.onnx")
    assert weight_scales(onnx.load(tmp_path / "fp8.onnx"))[tensor.name][1] == pytest.approx(
        np.abs(weight).max() / 448 or 1, rel=1e-6
    )
    expected = OnnxRunner(tmp_path / "fp32.onnx")(clips(5, seed=99))
    error = (OnnxRunner(tmp_path / "fp8.onnx")(clips(5, seed=99)) - expected).abs().max() / expected.abs().max()
    assert error < 0.2


def test_calibration_ranges_are_cached(graphs: dict[str, Path], tmp_path: Path) -> None:
    ranges = tmp_path / "cache" / "ranges.json"
    quantize(graphs["fp32"], tmp_path / "a.onnx", [clips(4).numpy()], method="minmax", ranges=ranges)
    quantize(graphs["fp32"], tmp_path / "b.onnx", [], method="minmax", ranges=ranges)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    ranges.write_text('{"data": [')
    quantize(graphs["fp32"], tmp_path / "c.onnx", [clips(4).numpy()], method="minmax", ranges=ranges)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_excluded_nodes_are_not_quantized(graphs: dict[str, Path], tmp_path: Path) -> None:
    def rounded(**settings: Any) -> list[bool]:
        quantize(graphs["fp32"], tmp_path / "q.onnx", [clips(4).numpy()], method="minmax", **settings)
        graph = onnx.load(tmp_path / "q.onnx").graph
        makers = {name: node.op_type for node in graph.node for name in node.output}
        return [makers.get(n.input[1]) == "DequantizeLinear" for n in graph.node if n.op_type == "Conv"]

    names = [node.name for node in onnx.load(graphs["fp32"]).graph.node if node.op_type == "Conv"]
    assert rounded(keep=names[3:5]) == [False, True, True, False, False] + [True] * 15
    assert all(rounded(stem=True))


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_calibration_methods(model: ClipModel, graphs: dict[str, Path], tmp_path: Path, method: str) -> None:
    some = clips(5).numpy()
    quantize(graphs["fp32"], tmp_path / "q.onnx", [some[:3], some[3:]], method=method)
    quantize(graphs["fp32"], tmp_path / "once.onnx", [some], method=method)
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()  # the batch size does not matter
    with torch.inference_mode():
        expected = model(clips(5, seed=99))
    error = (OnnxRunner(tmp_path / "q.onnx")(clips(5, seed=99)) - expected).abs().max() / expected.abs().max()
    assert error < 0.25


def test_ranges_cache_key_depends_on_weights_clips_and_settings(
    graphs: dict[str, Path], tiny_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_set, tmp_path / "set")
    split = open_manifest(tmp_path / "set").split("train")

    def place(graph: str = "fp32", count: int = 4, clip: Clip = CLIP, **settings: Any) -> Path:
        recipe = EngineRecipe(calibration=Calibration.model_validate(settings))
        found = _ranges_cache_file(graphs[graph], recipe, Clips(split, np.arange(count), clip, Data()))
        assert found is not None
        return found

    first = place()
    others = [
        place("fp16"),
        place(count=5),
        place(clip=Clip(frames=8, size=32)),
        place(method="entropy"),
        place(head=True),
    ]
    assert len({first, *others}) == 6
    assert place(stem=True, max_drop=1.0) == first  # these change where ranges are used, but not the ranges
    with split.path(0).open("ab") as file:
        file.write(b"\0")
    assert place() != first


def copied(run: Run, folder: Path) -> Run:
    """A copy of the shared run, to build engines in."""
    return Run(shutil.copytree(run.path, folder / run.name, symlinks=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_engine_of_a_run_matches_pytorch_in_a_complete_bundle(
    tiny_run: Run, tiny_set: Path, tmp_path: Path, precision: str
) -> None:
    run = copied(tiny_run, tmp_path)
    recipe = load_engine_recipe(precision, ("gate.clips=10", "gate.max_top1_drop=30", "calibration.clips=20"))
    bundle, failures = build_engine(run, recipe, "openvino", open_manifest(tiny_set))
    assert not failures and bundle.path == run.engines / f"{precision}-openvino"
    again = open_bundle(bundle.path)
    assert again.info == bundle.info
    assert again.info.input_shape == ("batch", 4, 32, 32, 3) and len(again.info.labels) == 10
    speed = {name: rate for name, rate in (again.info.verification or {}).items() if "clips_per_second" in name}
    assert len(speed) == (2 if precision == "int8" else 0) and all(rate > 0 for rate in speed.values())
    similarity = (again.info.verification or {})["embedding_similarity"]
    assert again.info.embedding == 32 and (0.9 if precision == "int8" else 0.999) < similarity <= 1.000001
    assert set(again.info.files) == {p.name for p in bundle.path.iterdir()} - {"bundle.json"}
    assert (again.info.calibration is None) == (precision != "int8")
    runner, trained = load_runner(again), load_trained(tiny_run)
    split = open_manifest(tiny_set).split("train")
    loader = ClipLoader(clip=trained.recipe.clip, batch=32, data=Data(), device=torch.device("cpu"))
    with torch.inference_mode():
        for count in (1, 3, again.info.batch.max):
            (batch,) = loader.batches(
                evaluation_batches(split, trained.recipe.clip, batch=count, rows=np.arange(count))
            )
            found, expected = (
                runner.start(batch.clips)(),
                (trained.model(batch.clips), trained.model.features(batch.clips)),
            )
            for ours, theirs, width in zip(found, expected, (10, 32), strict=True):
                assert ours is not None and ours.shape == theirs.shape == (count, width) and ours.dtype == torch.float32
                error = (ours - theirs).norm() / theirs.norm()
                assert error < {"fp32": 1e-5, "bf16": 3e-2, "fp16": 1e-2, "int8": 0.2}[precision]
            again = runner.start(batch.clips)()
            assert all(torch.equal(ours, other) for ours, other in zip(found, again, strict=True))


def test_logits_do_not_depend_on_the_position_in_the_batch(tiny_bundle: Bundle) -> None:
    runner = load_runner(tiny_bundle)
    batch = clips(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(runner(batch)[order], runner(batch[order]))


@pytest.mark.parametrize("which", ["logits", "embedding"])
def test_wrong_exports_are_refused(tiny_run: Run, tiny_set: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    def export_wrong_graph(model: ClipModel, path: Path, **settings: Any) -> None:
        export_onnx(model, path, **settings)
        graph = onnx.load(path)
        if which == "logits":
            graph = _with_other_classifier(graph, bfloat16=False)
        else:
            for node in graph.graph.node:
                node.input[:] = ["inside" if name == "embedding" else name for name in node.input]
                node.output[:] = ["inside" if name == "embedding" else name for name in node.output]
            graph.graph.node.append(onnx.helper.make_node("Neg", ["inside"], ["embedding"]))
        onnx.save(graph, path)

    monkeypatch.setattr("ssv2rt.engines.source.export_onnx", export_wrong_graph)
    says = f"the ONNX graph of 'resnet3d18' differs from the network by .* of its {which}, and"
    with pytest.raises(UserError, match=says):
        build_engine(tiny_run, load_engine_recipe("fp32"), "openvino", open_manifest(tiny_set))


def test_engine_failing_the_gate_goes_to_a_separate_folder(
    tiny_run: Run, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssv2rt.commands.build_engine import build_engine as command
    from ssv2rt.engines import precision as module

    run = copied(tiny_run, tmp_path)
    arguments = [str(run.path), "--fp16", "--backend", "openvino", "--set", "gate.clips=10"]
    before, failed = run.engines / "fp16-openvino", run.engines / "fp16-openvino.failed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "convert_to_half", _with_other_classifier)
        result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 1
    assert f"fails the gate and is kept in '{failed}' (it agrees on " in str(result.exception)
    assert "agreement" in result.stdout
    report = open_bundle(failed).info.verification or {}
    assert "it agrees on" in report["failures"][0] and report["agreement"] < report["gate"]["min_agreement"] == 99.5
    assert open_bundle(before).info == tiny_bundle.info
    assert CliRunner().invoke(command, arguments).exit_code == 0
    info = open_bundle(before).info
    assert not failed.exists() and (info.verification or {})["failures"] == []
    assert info.rebuild == f"ssv2rt build-engine {run.name} --fp16 --backend openvino --set gate.clips=10"


def _with_other_classifier(model: onnx.ModelProto, *, bfloat16: bool) -> onnx.ModelProto:
    """Stands in for `convert_to_half`: shuffles the rows of the graph's last matrix product."""
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    weight = next(t for t in model.graph.initializer if t.name == last.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    bias = next(t for t in model.graph.initializer if t.name == last.input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy(), bias.name))
    return model


@pytest.mark.parametrize("name", ["model.onnx", "engine.xml", "engine.bin"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_bundles_are_refused_with_a_rebuild_command(
    tiny_bundle: Bundle, tmp_path: Path, name: str, damage: str
) -> None:
    copy = tmp_path / "fp16"
    shutil.copytree(tiny_bundle.path, copy)
    data = bytearray((copy / name).read_bytes())
    if damage == "missing":
        (copy / name).unlink()
    else:
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data if damage == "altered" else data[:-1])
    with pytest.raises(UserError, match=f"{name}.*rebuild it with `ssv2rt build-engine"):
        open_bundle(copy)


def redescribed(bundle: Bundle, place: Path, change: dict[str, object]) -> Path:
    """A copy of a bundle with some entries of bundle.json replaced."""
    copy = place / "fp16"
    shutil.copytree(bundle.path, copy)
    info = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(info | change))
    return copy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "format 99 is not 1"),
        ({"files": {"../../x": "0"}}, "is missing"),
        ({"files": {}}, "no hash for"),
        ({"precision": None}, "damaged"),
        ({"surprise": 1}, "damaged"),
    ],
)
def test_altered_bundle_json_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    copy = redescribed(tiny_bundle, tmp_path, change)
    with pytest.raises(UserError, match=says):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ["a"] * 30}, "gives 10 classes and 32 features, which is not what bundle.json says"),
        ({"embedding": 31}, "gives 10 classes and 32 features, which is not"),
        ({"embedding": -1}, "damaged .at 'embedding'"),
        ({"labels": []}, "gives 10 classes"),
        ({"settings": {"arithmetic": "f17"}}, "arithmetic 'f17' is"),
        ({"clip": {"frames": 8, "size": 32}}, "input shape and clip disagree"),
        ({"batch": {"min": 1, "best": 100_000, "max": 100_000}}, "damaged .at 'batch.best'"),
    ],
)
def test_bundle_json_that_does_not_match_the_engine_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    copy = redescribed(tiny_bundle, tmp_path, change)
    with pytest.raises(UserError, match=says):
        load_runner(open_bundle(copy))


def test_bundle_files_without_a_hash_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "fp16"
    shutil.copytree(tiny_bundle.path, copy)
    info = json.loads((copy / "bundle.json").read_text())
    del info["files"]["engine.bin"]
    (copy / "bundle.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"no hash for 'engine.bin'"):
        open_bundle(copy)


def test_engines_for_other_versions_or_machines_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    info = tiny_bundle.info.model_copy(update={"backend": "tensorrt"})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs tensorrt: .*; it was built with `ssv2rt build-engine"):
            load_runner(Bundle(tiny_bundle.path, info))
        for backend, says in (
            ("tensorrt", "needs tensorrt: "),
            ("aotinductor", "was built for sm90, and this machine has"),
        ):
            change: dict[str, object] = {"backend": backend, "target": "sm90", "backend_version": torch.__version__}
            copy = redescribed(tiny_bundle, tmp_path / backend, change)
            with pytest.raises(
                UserError, match=f"{says}.* with `ssv2rt build-engine"
            ):  # rather than that there is no CUDA
                make_scorer(bundle=str(copy), device=0, top_k=1, clip=tiny_bundle.info.clip, data=Data())
    with pytest.raises(UserError, match="no backend 'coreml'"):
        load_runner(Bundle(tiny_bundle.path, tiny_bundle.info.model_copy(update={"backend": "coreml"})))


def test_calibration_clips_are_spread_over_the_classes(tiny_set: Path) -> None:
    split = open_manifest(tiny_set).split("train")
    rows = spread_over_classes(split, 20, seed=0)
    assert len(set(rows)) == 20
    assert np.bincount(split.classes[rows], minlength=10).tolist() == [2] * 10
    assert (rows == spread_over_classes(split, 20, seed=0)).all()
    assert (rows != spread_over_classes(split, 20, seed=1)).any()
    assert len(spread_over_classes(split, 10**6, seed=0)) == len(split)
