"""Engines from external ONNX files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from ssv2rt.commands.build_engine import build_engine
from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.inspect import list_layers
from ssv2rt.engines.onnx_source import source_of_onnx
from ssv2rt.engines.quantization import quantize
from ssv2rt.engines.verify import OnnxRunner
from ssv2rt.models.clip_model import MEAN, STD, ClipModel
from tests.cli import ssv2rt
from tests.engines.conftest import LABELS, clips
from tests.engines.onnx_graphs import ending_in


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return tmp_path / "labels.txt"


class FromFloats(nn.Module):
    """A network as other projects export it, with normalized float clips (N, 3, T, H, W) as input."""

    def __init__(self, model: ClipModel) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(video))
        return logits


def exported(model: nn.Module, path: Path, *, opset: int = 18, dynamic: bool = True) -> Path:
    shapes = {"video": {0: torch.export.Dim("n", min=1, max=64)}} if dynamic else None
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, 4, 32, 32),),
        dynamo=True,
        input_names=["video"],
        output_names=["scores"],
        dynamic_shapes=shapes,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return path


def test_float_input_graphs_get_normalization(model: ClipModel, labels: Path, tmp_path: Path) -> None:
    source = source_of_onnx(exported(FromFloats(model), tmp_path / "theirs.onnx"), labels)
    assert (source.clip.frames, source.clip.size, source.labels, source.name) == (4, 32, LABELS, "theirs")
    source.export(tmp_path / "ours.onnx")
    graph = onnx.load(tmp_path / "ours.onnx").graph
    assert graph.input[0].name == "frames" and graph.output[0].name == "logits"
    assert [node.op_type for node in graph.node if "frames" in node.input] == ["Cast"]
    with torch.inference_mode():
        for count in (1, 3):
            expected = model(clips(count))
            error = (OnnxRunner(tmp_path / "ours.onnx")(clips(count)) - expected).abs().max()
            assert error < 1e-4 * expected.abs().max()


def test_exported_graph_is_accepted_unchanged(graphs: dict[str, Path], labels: Path, tmp_path: Path) -> None:
    source = source_of_onnx(graphs["fp32"], labels)
    assert source.embedding == 64
    source.export(tmp_path / "again.onnx")
    ours, again = (onnxruntime.InferenceSession(path) for path in (graphs["fp32"], tmp_path / "again.onnx"))
    feed = {"frames": clips(2).numpy()}
    for first, second in zip(ours.run(None, feed), again.run(None, feed), strict=True):
        assert np.array_equal(first, second)


def test_exported_graph_names_its_classes(graphs: dict[str, Path], tmp_path: Path) -> None:
    assert source_of_onnx(graphs["fp32"], None).labels == LABELS
    for stored in ("", "{", "[]", "[1]", json.dumps([LABELS[0]] * len(LABELS))):
        graph = onnx.load(graphs["fp32"])
        next(entry for entry in graph.metadata_props if entry.key == "labels").value = stored
        onnx.save(graph, tmp_path / "damaged.onnx")
        with pytest.raises(UsageError, match=r"does not name its classes; give --labels FILE"):
            source_of_onnx(tmp_path / "damaged.onnx", None)


def external_graph(path: Path, *, names: dict[str, str] | None = None, results: tuple[str, ...]) -> Path:
    """A small graph in the style of older exporters: nodes without names, and numbered weights.

    Its tensors are the input x, features f, and logits c.

    Args:
        names: new names of tensors.
        results: the tensors that are outputs, in order.
    """
    rng, new = np.random.default_rng(0), names or {}
    weights = {
        "1": rng.normal(size=(8, 3, 1, 3, 3), scale=0.1),
        "2": rng.normal(size=(8, 8, 1, 3, 3), scale=0.1),
        "3": rng.normal(size=(8, 5)),
    }
    nodes = [
        ("Conv", ["x", "1"], "a"),
        ("Relu", ["a"], "logits"),  # clashes with the name of our output
        ("Conv", ["logits", "2"], "b"),
        ("GlobalAveragePool", ["b"], "p"),
        ("Flatten", ["p"], "f"),
        ("MatMul", ["f", "3"], "c"),
    ]
    shapes = {"x": ["n", 3, 4, 32, 32], "c": ["n", 5], "f": ["n", 8], "p": ["n", 8, 1, 1, 1]}
    ports = {
        name: onnx.helper.make_tensor_value_info(new.get(name, name), onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(op, [new.get(n, n) for n in takes], [new.get(gives, gives)])
            for op, takes, gives in nodes
        ],
        "g",
        [ports["x"]],
        [ports[name] for name in results],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return path


def test_embedding_output_is_kept_in_any_output_order(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = (clips(3).permute(0, 4, 1, 2, 3).float() - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1, 1
    )
    for results in (("c", "f"), ("f", "c")):
        file = external_graph(tmp_path / "theirs.onnx", names={"f": "embedding"}, results=results)
        source = source_of_onnx(file, labels)
        assert source.embedding == 8
        source.export(tmp_path / "ours.onnx")
        found = OnnxRunner(tmp_path / "ours.onnx").start(clips(3))()
        expected = onnxruntime.InferenceSession(file).run(["c", "embedding"], {"x": feed.numpy()})
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is not None and np.allclose(ours, theirs, atol=1e-4)
    assert "left out" not in capsys.readouterr().err
    for kept, says in (
        ("f", ""),
        ("p", "gives 'embedding' as fp32 [n, 8, 1, 1, 1], and not as float [N, features]; it"),
    ):
        names = {"p": "embedding"} if kept == "p" else {}
        source = source_of_onnx(external_graph(tmp_path / "other.onnx", names=names, results=("c", kept)), labels)
        source.export(tmp_path / "ours.onnx")
        assert source.embedding == 0 and OnnxRunner(tmp_path / "ours.onnx").start(clips(1))().embedding is None
        assert says in capsys.readouterr().err


def test_unnamed_nodes_are_quantized(labels: Path, tmp_path: Path) -> None:
    source_of_onnx(external_graph(tmp_path / "theirs.onnx", results=("c",)), labels).export(tmp_path / "ours.onnx")
    quantize(tmp_path / "ours.onnx", tmp_path / "int8.onnx", [clips(4).numpy()], method="minmax")
    layers = {layer.node: layer.precision for layer in list_layers(onnx.load(tmp_path / "int8.onnx"))}
    assert [layers["Conv_0"], layers["Conv_2"], layers["MatMul_5"]] == ["fp32", "int8", "fp32"]
    for name in ("ours", "int8"):
        onnx.save(convert_to_half(onnx.load(tmp_path / f"{name}.onnx")), tmp_path / "half.onnx")
        expected = OnnxRunner(tmp_path / "ours.onnx")(clips(3))
        assert (OnnxRunner(tmp_path / "half.onnx")(clips(3)) - expected).norm() < 0.1 * expected.norm()


def test_graphs_for_one_number_of_clips_or_without_convolutions_are_refused(
    model: ClipModel, tiny_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(5))))
    manifest = replace(open_manifest(tiny_set), labels=tuple(map(str, range(5))))
    fixed = source_of_onnx(exported(FromFloats(model), tmp_path / "fixed.onnx", dynamic=False), tmp_path / "labels.txt")
    few = load_engine_recipe("fp16", ("gate.clips=4",))
    with pytest.raises(
        UserError, match="'fixed' does not run on 4 clips and on one: .*; export it with a dynamic batch"
    ):
        build_engine_from_source(fixed, tmp_path, few, "openvino", manifest)
    flat = onnx.load(external_graph(tmp_path / "flat.onnx", results=("c",)))
    del flat.graph.node[:5]
    flat.graph.node.insert(0, onnx.helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0))
    flat.graph.node.insert(1, onnx.helper.make_node("MatMul", ["m", "2"], ["f"]))
    flat.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 4]), "axes"))
    flat.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 8), np.float32), "2"))
    flat.opset_import[0].version = 20
    onnx.save(flat, tmp_path / "flat.onnx")
    for precision in ("fp16", "int8"):
        recipe = load_engine_recipe(precision, ("gate.clips=4", "calibration.clips=4"))
        with pytest.raises(UserError, match="the graph has no convolution, .*; take --fp32"):
            build_engine_from_source(
                source_of_onnx(tmp_path / "flat.onnx", tmp_path / "labels.txt"), tmp_path, recipe, "openvino", manifest
            )


@pytest.mark.parametrize("names", [json.dumps(list(LABELS)), json.dumps({n: str(k) for k, n in enumerate(LABELS)})])
def test_label_file_formats(graphs: dict[str, Path], tmp_path: Path, names: str) -> None:
    (tmp_path / "labels").write_text(names)
    assert source_of_onnx(graphs["fp32"], tmp_path / "labels").labels == LABELS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("0;up\n1;down\n", "numbers beside the names, such as '0;up'; give a class name alone on each line"),
        ("up\t0\ndown\t1\n", r"numbers beside the names, such as 'up\\t0'"),
        (r'["up", "\ud800"]', "is no Unicode text"),
        (r'{"up": "0", "\ud800": "1"}', "is no Unicode text"),
    ],
)
def test_odd_label_lists_are_refused(graphs: dict[str, Path], tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "labels").write_text(content)
    with pytest.raises(UserError, match=says):
        source_of_onnx(graphs["fp32"], tmp_path / "labels")


def test_unsuitable_graphs_and_labels_are_refused(
    model: ClipModel, graphs: dict[str, Path], labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"gives 5 classes, and '.*few.txt' names 2"):
        source_of_onnx(graphs["fp32"], tmp_path / "few.txt")
    with pytest.raises(UserError, match="cannot read the labels"):
        source_of_onnx(graphs["fp32"], tmp_path / "gone.txt")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(UserError, match="junk.onnx"):
        source_of_onnx(tmp_path / "junk.onnx", labels)
    flat = onnx.load(graphs["fp32"])
    flat.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    onnx.save(flat, tmp_path / "int8.onnx")
    with pytest.raises(
        UserError, match=r"takes int8 .* must take uint8 \[N, T, S, S, 3\], or float \[N, 3, T, S, S\] or"
    ):
        source_of_onnx(tmp_path / "int8.onnx", labels)
    outside = onnx.load(graphs["fp32"])
    onnx.save(outside, tmp_path / "o.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    moved = onnx.load(tmp_path / "o.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    onnx.save(moved, tmp_path / "hostile.onnx")
    with pytest.raises(UserError, match="only plain files in its own folder are read"):
        source_of_onnx(tmp_path / "hostile.onnx", labels)


def test_external_onnx_from_build_to_score(
    model: ClipModel, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An external ONNX file with ten classes becomes an int8 engine that scores clips."""
    torch.manual_seed(0)
    ten = FromFloats(model)
    ten.head = nn.Linear(model.head.in_features, 10)
    exported(ten.eval(), tmp_path / "their graph.onnx")
    (tmp_path / "labels.json").write_text(json.dumps(list(open_manifest(tiny_set).labels)))

    monkeypatch.chdir(tmp_path)

    def build(*arguments: object) -> Result:
        return CliRunner().invoke(build_engine, [str(argument) for argument in arguments])

    shared = ("--onnx", "their graph.onnx", "--labels", "labels.json", "--int8")
    options = ("--set", "calibration.clips=20", "--set", "gate.clips=10", "--set", "gate.max_top1_drop=50")
    done = build(*shared, *options, "--data", tiny_set, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["rebuild"] == (
        "ssv2rt build-engine --onnx 'their graph.onnx' --labels labels.json --int8 --backend openvino "
        f"--data {tiny_set} {' '.join(options)}"
    )
    videos = sorted((tiny_set / "videos").iterdir())[:9]
    scored = ssv2rt("score", *videos, "--out", "p.csv", "--json", "--engine", "runs/their graph/engines/int8")
    assert scored.returncode == 0 and json.loads(scored.stdout)["videos"] == 9, scored.stderr
    for wrong, says in (
        (shared, "int8 is calibrated on clips, and there is no --data; give --data DIR, or --calibrate-on"),
        (("--onnx", "their graph.onnx"), "does not name its classes; give --labels FILE"),
        (("--fp16", "--max-drop", "1"), "--max-drop 1 is for --int8 and --fp8"),
        (("--bf16", "--debug-layers"), "ONNX Runtime, which compares layers, computes no bf16"),
        (("--backend", "coreml"), "--backend coreml: there are auto, tensorrt, tensorrt-rtx, openvino"),
    ):
        error = build(*wrong).exception
        assert isinstance(error, UsageError) and error.exit_code == 2 and says in str(error)


def test_files_of_old_exporters_work_and_those_of_the_future_are_refused(tmp_path: Path) -> None:
    """Before version 4 of the file format, weights are listed among the inputs."""
    (tmp_path / "five.txt").write_text("\n".join(LABELS))
    plain = source_of_onnx(ending_in(tmp_path / "theirs.onnx"), tmp_path / "five.txt")
    plain.export(tmp_path / "ours.onnx")
    old = onnx.load(ending_in(tmp_path / "old.onnx", opset=9))
    old.ir_version = 3
    for tensor in old.graph.initializer:
        old.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(old, tmp_path / "old.onnx")
    source_of_onnx(tmp_path / "old.onnx", tmp_path / "five.txt").export(tmp_path / "ours of old.onnx")
    expected = OnnxRunner(tmp_path / "ours.onnx")(clips(3))
    assert torch.allclose(OnnxRunner(tmp_path / "ours of old.onnx")(clips(3)), expected, atol=1e-5)
    old.opset_import[0].version = 99
    onnx.save(old, tmp_path / "future.onnx")
    with pytest.raises(UserError, match=r"has opset 99, and onnx .* knows \d+; export it with opset 20"):
        source_of_onnx(tmp_path / "future.onnx", tmp_path / "five.txt")
    custom = onnx.load(tmp_path / "theirs.onnx")
    custom.graph.node.append(onnx.helper.make_node("Own", ["y0"], ["z"], domain="their.own"))
    custom.opset_import.append(onnx.helper.make_opsetid("their.own", 1))
    custom.graph.output[0].name = "z"
    onnx.save(custom, tmp_path / "custom.onnx")
    source_of_onnx(tmp_path / "custom.onnx", tmp_path / "five.txt").export(tmp_path / "ours.onnx")
    with pytest.raises(
        UserError, match="cannot run the graph .*their.own:Own.*; export it with operators and types that"
    ):
        OnnxRunner(tmp_path / "ours.onnx")


@pytest.mark.parametrize("of", ["fp16", "int8", "int8half"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_of_any_precision_become_engines(
    graphs: dict[str, Path], labels: Path, tmp_path: Path, of: str, precision: str
) -> None:
    source_of_onnx(graphs[of], labels).export(tmp_path / "ours.onnx")
    graph = onnx.load(tmp_path / "ours.onnx")
    onnx.save(convert_to_half(graph) if precision == "fp16" else graph, tmp_path / "engine.onnx")
    expected = OnnxRunner(graphs[of])(clips(3))
    assert (OnnxRunner(tmp_path / "engine.onnx")(clips(3)) - expected).norm() < 0.05 * expected.norm()
