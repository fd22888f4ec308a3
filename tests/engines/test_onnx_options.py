"""What is given and what is assumed about an ONNX file of another program: pixels, clips and the end of the graph."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import ClipReading
from ssv2rt.core.run_folders import Run
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.bundle import INFO, open_bundle
from ssv2rt.engines.normalization import PRESETS, Normalization, normalization
from ssv2rt.engines.onnx_source import source_of_onnx
from ssv2rt.engines.verify import OnnxRunner
from tests.cli import Done, ssv2rt
from tests.engines.conftest import clips
from tests.engines.onnx_graphs import ending_in, frame_by_frame, mean_graph

REPEATED = ("--fp32", "--backend", "openvino", "--set", "gate.clips=4")


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    (tmp_path / "rgb.txt").write_text("red\ngreen\nblue\n")
    return tmp_path / "rgb.txt"


@pytest.fixture
def five(tmp_path: Path) -> Path:
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    return tmp_path / "five.txt"


def build(folder: Path, *options: object) -> Done:
    return ssv2rt("build-engine", "--onnx", "theirs.onnx", *options, *REPEATED, cwd=folder)


@pytest.mark.parametrize(
    ("options", "expected", "assumed"),
    [
        ((), PRESETS["imagenet"], True),
        (("--normalize", "kinetics"), PRESETS["kinetics"], False),
        (("--normalize", "-1-1"), PRESETS["-1-1"], False),
        (("--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7"), Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), False),
        (
            ("--mean", "104,117,123", "--std", "1,1,1", "--scale", "1"),
            Normalization((104, 117, 123), (1, 1, 1), 1),
            False,
        ),
    ],
)
def test_the_network_gets_pixels_normalized_as_asked(
    tmp_path: Path, rgb: Path, options: tuple[str, ...], expected: Normalization, assumed: bool
) -> None:
    mean_graph(tmp_path / "theirs.onnx")
    done = build(tmp_path, "--labels", rgb, *options)
    assert done.returncode == 0, done.stderr
    assert f"theirs.onnx: pixels are normalized with {expected}" in done.stderr
    assert ("(assumed: imagenet; --normalize, or --mean and --std" in done.stderr) is assumed
    bundle = open_bundle(tmp_path / "runs/theirs/engines/fp32-openvino")
    batch = clips(3)
    pixels = (batch.double() / expected.scale - torch.tensor(expected.mean)) / torch.tensor(expected.std)
    assert torch.allclose(load_runner(bundle)(batch), pixels.mean((1, 2, 3)).float(), rtol=1e-4, atol=1e-4)
    imported = bundle.info.imported
    assert imported and (imported["mean"], imported["scale"]) == (expected.mean, expected.scale)
    assert ("mean" in imported["assumed"]) is assumed
    assert " ".join(options) in bundle.info.rebuild


@pytest.mark.parametrize("frames_first", [False, True])
@pytest.mark.parametrize("colors", ["rgb", "bgr"])
def test_pixels_are_in_the_form_and_order_that_the_network_takes(
    tmp_path: Path, rgb: Path, colors: str, frames_first: bool
) -> None:
    """The logits of this network are the means of the first, second and third color of its input."""
    mean_graph(tmp_path / "theirs.onnx", frames_first=frames_first)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    done = build(tmp_path, "--labels", rgb, "--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7", "--colors", colors)
    assert done.returncode == 0, done.stderr
    order = {"rgb": "red, green, blue", "bgr": "blue, green, red"}[colors]
    assert (
        f"theirs.onnx: colors are in the order {order}\n" in done.stderr
        and f"colors               {colors}" in done.stdout
    )
    bundle = open_bundle(tmp_path / "runs/theirs/engines/fp32-openvino")
    batch = clips(3)
    means = ((batch.double() / 255 - torch.tensor(mean)) / torch.tensor(std)).mean((1, 2, 3)).float()
    expected = means if colors == "rgb" else means.flip(1)
    assert torch.allclose(load_runner(bundle)(batch), expected, rtol=1e-4, atol=1e-4)
    assert (
        bundle.info.imported
        and bundle.info.imported["colors"] == colors
        and "colors" not in bundle.info.imported["assumed"]
    )
    assert f"--colors {colors}" in bundle.info.rebuild
    nodes = onnx.load(bundle.onnx_file).graph.node
    assert [node.op_type for node in nodes if "frames" in node.input] == ["Cast"]  # as TensorRT wants it


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_network_that_takes_frame_by_frame_is_built_in_every_precision(
    tmp_path: Path, five: Path, tiny_set: Path, precision: str
) -> None:
    """(N, T, 3, S, S), each frame through a 2D convolution, colors in the order blue, green, red."""
    frame_by_frame(tmp_path / "theirs.onnx")
    options = ("--labels", five, "--colors", "bgr", "--set", "gate.max_top1_drop=100", "--set", "calibration.clips=8")
    calibration = ("--calibrate-on", tiny_set / "videos") if precision == "int8" else ()
    call = ("build-engine", "--onnx", "theirs.onnx", f"--{precision}", "--backend", "openvino", "--set", "gate.clips=4")
    done = ssv2rt(*call, *options, *calibration, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    batch = clips(4)
    pixels = (batch.permute(0, 1, 4, 2, 3).float() / 255 - _column((0.485, 0.456, 0.406))[:, 0]) / _column(
        (0.229, 0.224, 0.225)
    )[:, 0]
    theirs = onnxruntime.InferenceSession(tmp_path / "theirs.onnx")
    (expected,) = theirs.run(None, {"x": pixels.flip(2).numpy()})
    found = load_runner(open_bundle(tmp_path / "runs/theirs/engines" / f"{precision}-openvino"))(batch)
    assert (found - torch.from_numpy(expected)).norm() < 0.1 * np.linalg.norm(expected)


def test_engines_of_another_file_of_the_same_name_are_not_replaced(tmp_path: Path, rgb: Path, five: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    mean_graph(tmp_path / "a" / "net.onnx")
    ending_in(tmp_path / "b" / "net.onnx")
    call = ("build-engine", "--onnx", "a/net.onnx", "--labels", rgb, *REPEATED)
    assert ssv2rt(*call, cwd=tmp_path).returncode == 0
    engine = tmp_path / "runs/net/engines/fp32-openvino"
    before = (engine / INFO).read_bytes()
    for precision in ("--fp32", "--fp16"):
        done = ssv2rt("build-engine", "--onnx", "b/net.onnx", "--labels", five, precision, *REPEATED[1:], cwd=tmp_path)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert (
            f"the engines of 'b/net.onnx' go to 'runs/net/engines', where those of '{tmp_path / 'a' / 'net.onnx'}' are; give "
            "one of the files another name, or remove 'runs/net'"
        ) in done.stderr
    assert (engine / INFO).read_bytes() == before and [path.name for path in engine.parent.iterdir()] == [engine.name]
    # A copy is the same network, and a file that was exported again is the same file.
    shutil.copy(tmp_path / "a" / "net.onnx", tmp_path / "c")
    assert ssv2rt(*call[:2], "c/net.onnx", *call[3:], cwd=tmp_path).returncode == 0
    mean_graph(tmp_path / "c" / "net.onnx", uint8=True)
    assert ssv2rt(*call[:2], "c/net.onnx", *call[3:], cwd=tmp_path).returncode == 0


def test_clip_settings_of_the_recipe_are_taken_and_the_assumed_ones_are_named(tmp_path: Path, rgb: Path) -> None:
    mean_graph(tmp_path / "theirs.onnx")
    settings = ("--set", "clip.sampling=dense", "--set", "clip.stride=3", "--set", "clip.views=[2,3]")
    done = build(tmp_path, "--labels", rgb, *settings, "--normalize", "0-1")
    assert done.returncode == 0, done.stderr
    words = "4 frames of 32x32, dense sampling with stride 3, center crop 0.875, views 2x3"
    read = words.removeprefix("4 frames of 32x32, ")
    assert f"clips are read with {read} (assumed: clip.center_crop, clip.average;" in done.stderr
    folder = tmp_path / "runs/theirs/engines/fp32-openvino"
    info = open_bundle(folder).info
    assert (info.clip.sampling, info.clip.stride, info.clip.views, info.clip.frames) == ("dense", 3, (2, 3), 4)
    shown = ssv2rt("inspect", "theirs", cwd=tmp_path).stdout
    assert words in shown
    assert "(value / 255 - [0, 0, 0]) / [1, 1, 1]" in shown and "not measured" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(" assumed")] == [
        ["assumed", "colors,", "clip.center_crop,", "clip.average"]
    ]
    # Bundles that were built before these facts were kept have none of them, and still open.
    older = json.loads((folder / INFO).read_text())
    del older["imported"]
    for name in ("reference", "clips_from", "notes"):
        del older["verification"][name]
    (folder / INFO).write_text(json.dumps(older))
    assert open_bundle(folder).info.imported is None
    assert ssv2rt("inspect", "theirs", cwd=tmp_path).returncode == 0


def test_a_graph_of_this_package_brings_its_clip_settings(graphs: dict[str, Path], tmp_path: Path, five: Path) -> None:
    model = onnx.load(graphs["fp32"])
    stored = next(entry for entry in model.metadata_props if entry.key == "clip")
    stored.value = json.dumps({**json.loads(stored.value), "sampling": "dense", "stride": 4.0, "center_crop": 1.0})
    onnx.save(model, tmp_path / "ours.onnx")
    source = source_of_onnx(tmp_path / "ours.onnx", five, reading=ClipReading(stride=1.5))
    assert (source.clip.sampling, source.clip.stride, source.clip.center_crop) == ("dense", 1.5, 1.0)
    assert source.imported == {"assumed": (), "file": str(tmp_path / "ours.onnx")}


def test_options_that_do_not_apply_are_refused(tmp_path: Path, rgb: Path) -> None:
    mean_graph(tmp_path / "theirs.onnx", uint8=True)
    for options, says in (
        (("--colors", "bgr"), "'theirs.onnx' takes uint8 and normalizes its pixels itself; leave out --normalize"),
        (("--normalize", "half"), "'theirs.onnx' takes uint8 and normalizes its pixels itself; leave out --normalize"),
        (("--mean", "0,0,0"), "--mean, --std and --scale describe one normalization; give --mean and --std"),
        (("--normalize", "half", "--mean", "0,0,0"), "--normalize half with --mean, --std or --scale"),
    ):
        done = build(tmp_path, "--labels", rgb, *options)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    for options, says in (
        (("--normalize", "half"), "--normalize half is for --onnx"),
        (("--labels", "rgb.txt"), "--labels rgb.txt is for --onnx"),
    ):
        done = ssv2rt("build-engine", *options, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr


@pytest.mark.parametrize(
    ("mean", "std", "scale", "says"),
    [
        ("123,116,103", "58,57,57", None, "means are from 0 to 1; for means of values up to 255 add --scale 1"),
        (
            "0.5,0.5,0.5",
            "58,57,57",
            None,
            "deviations are above 0 and at most 3.92; for values up to 255 add --scale 1",
        ),
        ("0.5,0.5,0.5", "0,1,1", None, "deviations are above 0"),
        ("0.5,0.5", "1,1,1", None, "--mean 0.5,0.5: write three numbers for red, green and blue"),
        ("0,0,nan", "1,1,1", None, "--mean 0,0,nan: "),
        ("0,0,0", "1,1,inf", 1.0, "--std 1,1,inf: "),
        ("0,0,0", "1,1,1", 0.0, "--scale 0: give a number above 0"),
    ],
)
def test_normalizations_out_of_range_are_refused(mean: str, std: str, scale: float | None, says: str) -> None:
    with pytest.raises(UsageError) as error:
        normalization(None, mean, std, scale)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (
            (4, 8, 8),
            r"takes 4 frames of 8x8, which are not read here \(size = 8: must be greater than or equal to 16\)",
        ),
        ((4, 5000, 5000), r"takes 4 frames of 5000x5000, .*\(size = 5000: must be less than or equal to 1024\)"),
        ((5000, 32, 32), r"takes 5000 frames of 32x32, .*\(frames = 5000: must be less than or equal to 1024\)"),
    ],
)
def test_clips_out_of_range_are_refused_in_one_line(
    tmp_path: Path, rgb: Path, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        source_of_onnx(mean_graph(tmp_path / "theirs.onnx", shape=shape), rgb)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 33, 33)])
def test_one_frame_and_odd_sizes_work(tmp_path: Path, rgb: Path, tiny_set: Path, shape: tuple[int, ...]) -> None:
    mean_graph(tmp_path / "theirs.onnx", shape=shape)
    done = build(tmp_path, "--labels", rgb)
    assert done.returncode == 0 and ("is taken as [N, 3, T, S, S], and not as [N, T" in done.stderr) is (shape[0] == 3)
    video = next((tiny_set / "videos").iterdir())
    done = ssv2rt("score", video, "--out", "p.csv", "--run", "theirs", "--top-k", "1", cwd=tmp_path)
    assert done.returncode == 0 and ",ok," in (tmp_path / "p.csv").read_text(), done.stderr


def test_networks_with_fewer_than_two_classes_are_refused(tmp_path: Path) -> None:
    model = onnx.load(mean_graph(tmp_path / "theirs.onnx"))
    axes = model.graph.initializer[0]
    axes.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 2, 3, 4]), "axes"))
    model.graph.node[1].attribute[0].i = 1
    model.graph.node.insert(2, onnx.helper.make_node("Flatten", ["y"], ["one"]))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("one", onnx.TensorProto.FLOAT, ["n", 1]))
    onnx.save(model, tmp_path / "theirs.onnx")
    (tmp_path / "one.txt").write_text("only\n")
    with pytest.raises(UserError, match="gives 1 class, and a prediction chooses among two or more"):
        source_of_onnx(tmp_path / "theirs.onnx", tmp_path / "one.txt")
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="names no class"):
        source_of_onnx(tmp_path / "theirs.onnx", tmp_path / "none.txt")


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize(
    ("ends", "cut"),
    [
        (("Softmax",), "Softmax"),
        (("Softmax", "Identity"), "Softmax"),
        (("Softmax", "Flatten"), "Softmax"),
        (("Sigmoid",), "Sigmoid"),
        (("LogSoftmax",), ""),
        ((), ""),
    ],
)
def test_activations_at_the_end_are_cut_off(
    tmp_path: Path, five: Path, ends: tuple[str, ...], cut: str, opset: int
) -> None:
    source = source_of_onnx(ending_in(tmp_path / "theirs.onnx", *ends, opset=opset), five)
    source.export(tmp_path / "ours.onnx")
    plain = onnxruntime.InferenceSession(ending_in(tmp_path / "plain.onnx", opset=opset))
    pixels = (clips(6).permute(0, 4, 1, 2, 3).float() / 255 - _column((0.485, 0.456, 0.406))) / _column(
        (0.229, 0.224, 0.225)
    )
    expected = torch.from_numpy(plain.run(None, {"x": pixels.numpy()})[0])
    expected = expected.log_softmax(1) if "LogSoftmax" in ends else expected
    assert torch.allclose(OnnxRunner(tmp_path / "ours.onnx")(clips(6)), expected, atol=1e-4)
    assert (source.imported or {}).get("cut", "") == cut


def _column(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1, 1)


def test_what_was_cut_off_is_said_and_hidden_probabilities_are_refused(tmp_path: Path, five: Path) -> None:
    ending_in(tmp_path / "theirs.onnx", "Softmax")
    done = build(tmp_path, "--labels", five)
    assert done.returncode == 0 and "its last Softmax is cut off, and it gives logits" in done.stderr, done.stderr
    assert "cut off              Softmax" in done.stdout
    ending_in(tmp_path / "theirs.onnx", "LogSoftmax", "Exp")
    done = build(tmp_path, "--labels", five)
    assert done.returncode == 1 and "gives values that sum to 1 for every clip, and so probabilities" in done.stderr


def test_commands_that_need_a_checkpoint_say_that_there_is_none(tmp_path: Path, rgb: Path) -> None:
    mean_graph(tmp_path / "theirs.onnx")
    done = build(tmp_path, "--labels", rgb)
    assert done.returncode == 0 and "top-1, ONNX Runtime" in done.stdout and "PyTorch" not in done.stdout + done.stderr
    for words in (("evaluate", "theirs"), ("build-engine", "theirs"), ("train", "--resume", "theirs")):
        done = ssv2rt(*words, cwd=tmp_path)
        assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
        assert "'runs/theirs' has engines of an ONNX file, and no checkpoint; only `score` and `inspect`" in done.stderr
    done = ssv2rt("inspect", "their", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'theirs'?" in done.stderr


def test_engines_of_a_file_do_not_go_into_a_run(tmp_path: Path, rgb: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "recipe.toml").touch()
    for name in ("demo", "latest"):
        mean_graph(tmp_path / f"{name}.onnx")
        done = ssv2rt("build-engine", "--onnx", f"{name}.onnx", "--labels", rgb, *REPEATED, cwd=tmp_path)
        assert done.returncode == 1 and f"go to 'runs/{name}', which is a run of its own" in done.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / "demo").iterdir()) == ["recipe.toml"]


def test_clip_settings_of_a_run_are_not_changed_by_an_engine_recipe(tiny_run: Run) -> None:
    done = ssv2rt("build-engine", tiny_run.path, "--set", "clip.sampling=dense")
    assert (
        done.returncode == 2 and "clip.sampling is for --onnx: an engine of a run reads clips as the run" in done.stderr
    )
