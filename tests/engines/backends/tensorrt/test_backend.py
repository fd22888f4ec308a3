"""TensorRT and TensorRT for RTX: as much of building engines as works without a GPU."""

import os
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Clip, Engine
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.tensorrt import progress
from ssv2rt.engines.backends.tensorrt.backend import AMPERE_PLUS, RTX, TENSORRT, TensorRtBackend, target_includes
from ssv2rt.engines.backends.tensorrt.build import TimingCache
from ssv2rt.engines.backends.tensorrt.log import Log, strip_source_locations
from ssv2rt.engines.backends.tensorrt.progress import BuildProgress, run_interruptibly
from ssv2rt.engines.base import BuiltEngine, Graph
from ssv2rt.engines.build import build_engine
from ssv2rt.engines.bundle import open_bundle
from ssv2rt.engines.export import export_onnx
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.quantization import convert_to_fp8, quantize
from tests.engines.conftest import model_with_random_statistics

needs_rtx = pytest.mark.skipif(bool(RTX.cannot_build_reason()), reason=RTX.cannot_build_reason())
ADA = Engine(targets=("sm89",))


def build(graph: Path, folder: Path, settings: Engine) -> BuiltEngine:
    """Builds an engine in a new folder, as `build_engine` does."""
    scratch = folder / ".scratch.partial"
    scratch.mkdir()
    shutil.copy(graph, scratch / "model.onnx")
    return RTX.build(Graph(scratch / "model.onnx", None), settings)


@needs_rtx
@pytest.mark.parametrize(
    ("name", "arithmetic"), [("fp32", {"FP32": 20}), ("fp16", {"FP16": 20}), ("int8half", {"INT8": 19, "FP16": 1})]
)
def test_builder_accepts_graphs_in_every_precision(
    graphs: dict[str, Path], tmp_path: Path, name: str, arithmetic: dict[str, int]
) -> None:
    precision: Any = "int8" if name == "int8half" else name
    settings = Engine(precision=precision, targets=("sm80", "sm89"))
    built = build(graphs[name], tmp_path, settings)
    assert RTX.target_of(settings) == "sm80,sm89"
    assert built.more_files == ("layers.json",)
    assert built.settings["layers"] == {"convolutions": arithmetic}
    assert (tmp_path / ".scratch.partial" / built.file).stat().st_size > 1000
    # TensorRT for RTX does not time kernels during a build, so there is no timing cache.
    assert [path.name for path in tmp_path.iterdir()] == [".scratch.partial"]


@needs_rtx
def test_engine_header_is_valid(graphs: dict[str, Path], tmp_path: Path) -> None:
    """Without a driver, only the header can be checked; the runtime then reports the missing driver, not a damaged engine."""
    trt = pytest.importorskip("tensorrt_rtx")
    built = build(graphs["fp16"], tmp_path, ADA)
    plan, log = (tmp_path / ".scratch.partial" / built.file).read_bytes(), Log(trt)
    runtime = trt.Runtime(log.logger)
    damaged = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert not runtime.get_engine_validity(plan)[1] & damaged
    for wrong in (plan[5:], b"junk" * 100):
        assert runtime.get_engine_validity(wrong)[1] & damaged
    if not torch.cuda.is_available():
        assert runtime.deserialize_cuda_engine(plan) is None and "driver" in log.reason


@needs_rtx
def test_int8_engines_without_int8_kernels_are_reported(
    graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT for RTX has INT8 kernels for 3D convolutions since sm80, but uses none if sm75 is among the targets."""
    built = build(graphs["int8half"], tmp_path, Engine(precision="int8", targets=("sm75", "sm89")))
    assert built.settings["layers"] == {"convolutions": {"FP16": 20}}
    assert "no convolution of this int8 engine runs in INT8 on sm75,sm89 (20 in FP16); take" in capsys.readouterr().err


@needs_rtx
def test_too_small_workspace_is_named(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no tactics .* within workspace limit.*; try --set engine.workspace_gib=0.002, a"
    ) as e:
        build(graphs["fp16"], tmp_path, Engine(targets=("sm89",), workspace_gib=0.001))
    assert ".cpp" not in str(e.value)


@needs_rtx
def test_bundle_lists_layers_from_the_builder_log(tiny_run: Run, tiny_set: Path, tmp_path: Path) -> None:
    recipe = load_engine_recipe("fp16", ("gate.clips=8", 'engine.targets=["sm89"]'))
    bundle, _ = build_engine(
        Run(shutil.copytree(tiny_run.path, tmp_path / "run")), recipe, "tensorrt-rtx", open_manifest(tiny_set)
    )
    bundle = open_bundle(bundle.path)
    assert {"model.onnx", "engine.plan", "layers.json"} == set(bundle.info.files)
    assert bundle.info.settings["layers"] == {"convolutions": {"FP16": 20}}


@needs_rtx
def test_code_path_of_plain_tensorrt(graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX stands in for TensorRT, as far as that works without a GPU and timing caches."""
    backend = TensorRtBackend("tensorrt", "tensorrt")
    monkeypatch.setattr(backend, "_trt", RTX._trt)
    monkeypatch.setattr(backend, "target", lambda: "sm89")
    scratch = tmp_path / ".scratch.partial"
    scratch.mkdir()
    graph = Graph(Path(shutil.copy(graphs["fp16"], scratch / "model.onnx")), None)
    with pytest.raises(UsageError, match=r"--target sm80,sm89: TensorRT builds for the GPU that is here \(sm89\)"):
        backend.build(graph, Engine(targets=("sm80", "sm89")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        built = backend.build(graph, Engine(hardware_compatible=True))
    assert backend.target_of(Engine(hardware_compatible=True)) == AMPERE_PLUS and built.settings["cuda_graph"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".scratch.partial",
        f"timing-tensorrt-{RTX.version()}-sm89.cache",
    ]
    monkeypatch.setattr(backend, "target", lambda: "sm75")
    with pytest.raises(UserError, match="hardware_compatible = true needs a GPU since sm80, and this is sm75"):
        backend.build(graph, Engine(hardware_compatible=True))


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_builder_accepts_a_full_size_resnet(tmp_path: Path, precision: str) -> None:
    model = model_with_random_statistics("resnet3d18", width=64)
    model.head = torch.nn.Linear(model.head.in_features, 174)
    file = tmp_path / "model.onnx"
    export_onnx(model, file, clip=Clip(frames=16, size=112), labels=tuple(map(str, range(174))))
    if precision == "int8":
        clips = torch.randint(0, 256, (1, 16, 112, 112, 3), dtype=torch.uint8)
        quantize(file, file, [clips.numpy()], method="minmax")
    onnx.save(convert_to_half(onnx.load(file)), file)
    built = build(file, tmp_path, Engine(targets=("sm80", "sm89")))
    assert built.settings["layers"]["convolutions"] == (
        {"INT8": 19, "FP16": 1} if precision == "int8" else {"FP16": 20}
    )
    assert (tmp_path / ".scratch.partial" / built.file).stat().st_size > 3e7


@needs_rtx
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_bf16_and_fp8_engines_use_their_precision(graphs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = convert_to_fp8(onnx.load(graphs["int8"])) if kind == "fp8" else onnx.load(graphs["fp32"])
    onnx.save(convert_to_half(model, bfloat16=kind == "bf16"), tmp_path / "model.onnx")
    settings = Engine.model_validate({"precision": kind, "targets": ("sm89",)})
    built = RTX.build(Graph(tmp_path / "model.onnx", None), settings)
    found = built.settings["layers"]["convolutions"]
    assert found == ({"FP8": 19, "FP16": 1} if kind == "fp8" else {"BF16": 20})


def test_unsupported_rtx_targets_are_refused(graphs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="does not build for sm90; it does for sm75, sm80"):
        RTX.build(Graph(graphs["fp16"], None), Engine(targets=("sm90",)))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU here to build for; name one: --target sm75|sm80"):
            RTX.build(Graph(graphs["fp16"], None), Engine())


@needs_rtx
def test_rtx_is_not_chosen_for_a_gpu_that_it_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend = TensorRtBackend("tensorrt_rtx", "rtx")
    for here, reason in (("sm90", "does not run on sm90, but on sm75, sm80"), ("sm89", "")):
        monkeypatch.setattr(backend, "target", lambda here=here: here)
        assert reason in backend.unavailable_reason() and bool(reason) == bool(backend.unavailable_reason())
        assert not backend.cannot_build_reason()


@needs_rtx
@pytest.mark.parametrize("name", ["version_compatible", "hardware_compatible"])
def test_unsupported_rtx_settings_are_refused(graphs: dict[str, Path], name: str) -> None:
    with pytest.raises(UsageError, match=f"engine.{name} = true: TensorRT for RTX has no such engines"):
        RTX.build(Graph(graphs["fp16"], None), Engine(targets=("sm89",), **{name: True}))


def cast_then(*nodes: onnx.NodeProto, more_inputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A graph that casts `frames` to float `x`, and computes `logits` with the given nodes."""
    cast = helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT, name="cast")
    inputs = [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 4])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in more_inputs]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(helper.make_graph([cast, *nodes], "g", inputs, outputs), opset_imports=opsets)


UNKNOWN = cast_then(helper.make_node("Foo", ["x"], ["logits"], name="foo", domain="elsewhere"))
UNNAMED = cast_then(helper.make_node("Unique", ["x"], ["logits"]))
MIXED = cast_then(
    helper.make_node("Cast", ["frames"], ["y"], to=TensorProto.FLOAT16, name="half"),
    helper.make_node("Add", ["x", "y"], ["logits"], name="mixed"),
)
OTHER_INPUT = cast_then(helper.make_node("Add", ["x", "z"], ["logits"], name="add"), more_inputs=("z",))


@needs_rtx
@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (UNKNOWN, r"does not take model.onnx: node 'foo' \(Foo\): this operator is not supported; try --fp32, or"),
        (UNNAMED, r"does not take model.onnx: node 1 \(Unique\): this operator is not supported; try"),
        (MIXED, r"node 'mixed' \(Add\): ElementWiseOperation SUM must have same input types.* Float and Half; try"),
        (OTHER_INPUT, "could not build model.onnx: Dynamic input tensor z is missing dimensions in profile 0; try"),
        (b"not a graph", "does not take model.onnx: Failed to parse the ONNX model; try"),
        (b"", "does not take model.onnx: it has no inputs; try"),
    ],
)
def test_parser_errors_name_node_reason_and_suggestion(
    tmp_path: Path, graph: onnx.ModelProto | bytes, message: str
) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
    with pytest.raises(UserError, match=message) as caught:
        build(file, tmp_path, ADA)
    assert "\n" not in str(caught.value) and "/_src" not in str(caught.value)
    assert str(caught.value).endswith("or --backend openvino")


def test_source_locations_are_stripped_from_errors() -> None:
    shown = {
        "IBuilder::f: Error Code 4: API Usage Error (Shapes differ. In g at /_src/h.cpp:7)": "Shapes differ",
        "x: Error Code 1: Cuda Runtime (In f at /a.cpp:1 (cudaError 35: driver too old))": "cudaError 35: driver too old",
        "f: Error Code 10: Internal Error (Could not find any implementation for node conv1.)": (
            "Could not find any implementation for node conv1"
        ),
        "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)": "Requested size was 8589934592 bytes",
        "f: Error Code 9: Internal Error (model: [pass.cpp:15: run] Cannot compile)": "model: Cannot compile",
        "Error Code 9: Skipped ()": "Skipped",
        "Assertion failed: a.b(0): it is not constant": "it is not constant",
        'Assertion failed: creator && "no such plugin"': "no such plugin",
        "two\nlines": "two lines",
        "": "",
    }
    assert {message: strip_source_locations(message) for message in shown} == shown


@needs_rtx
def test_interrupt_stops_the_build_and_leaves_no_files(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = []

    def step(self: BuildProgress, name: str, number: int) -> bool:
        steps.append(name)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while not self.stopped and time.monotonic() < deadline:
                time.sleep(0.01)
        return not self.stopped

    monkeypatch.setattr(progress.BuildProgress, "step", step)
    with pytest.raises(KeyboardInterrupt):
        build(graphs["fp16"], tmp_path, ADA)
    assert len(steps) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".scratch.partial", "model.onnx"]
    assert "stopping TensorRT" in capfd.readouterr().err


def test_interrupt_at_any_moment_waits_for_the_work() -> None:
    for _ in range(50):
        stopped, ended = threading.Event(), threading.Event()

        def work(stopped: threading.Event = stopped, ended: threading.Event = ended) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(20)
            ended.set()

        with pytest.raises(KeyboardInterrupt):
            run_interruptibly(work, stopped.set, lambda: None)
        assert ended.is_set()


def test_exceptions_of_the_build_thread_are_raised() -> None:
    def fail() -> None:
        raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        run_interruptibly(fail, lambda: None, lambda: None)
    assert run_interruptibly(lambda: 3, lambda: None, lambda: None) == 3


def test_build_progress_shows_the_innermost_phase() -> None:
    phases = BuildProgress()
    assert phases.now == ""
    phases.start("Building", 6)
    phases.step("Building", 0)
    phases.start("Timing", 20)
    assert phases.step("Timing", 2)
    assert (phases.now, phases.steps) == ("Timing 3/20", 2)
    phases.finish("Timing")
    assert phases.now == "Building 1/6"
    phases.stopped = True
    assert not phases.step("Building", 1)


@needs_rtx
@pytest.mark.parametrize("content", [None, b"", b"damaged", "its own"])
def test_timing_caches_are_written_and_damaged_ones_replaced(tmp_path: Path, content: bytes | str | None) -> None:
    """Uses the bindings of TensorRT for RTX, which have the interface of timing caches but store nothing."""
    trt = pytest.importorskip("tensorrt_rtx")
    log, path = Log(trt), tmp_path / "timing.cache"
    builder = trt.Builder(log.logger)

    def save() -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT for RTX has deprecated timing caches
            TimingCache(builder.create_builder_config(), path).save()
        return path.read_bytes()

    if content is not None:
        path.write_bytes(save() if isinstance(content, str) else content)
    assert len(save()) > 20
    assert [found.name for found in tmp_path.iterdir()] == ["timing.cache"]


class Config:
    """A fake builder config and timing cache. It rejects caches that are damaged or of another GPU, as TensorRT does."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> "Config | None":
        self.tried.append(content)
        return None if content == b"damaged" else self

    def set_timing_cache(self, cache: "Config", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return self.tried[-1] != b"of another GPU"

    def get_timing_cache(self) -> "Config":
        return self

    def serialize(self) -> bytes:
        return b"timings"


@pytest.mark.parametrize(
    ("content", "tried"),
    [
        (None, [b""]),
        (b"damaged", [b"damaged", b""]),
        (b"of another GPU", [b"of another GPU", b""]),
        (b"good", [b"good"]),
    ],
)
def test_only_matching_timing_caches_are_used(tmp_path: Path, content: bytes | None, tried: list[bytes]) -> None:
    path, config = tmp_path / "timing.cache", Config()
    if content is not None:
        path.write_bytes(content)
    cache = TimingCache(config, path)
    assert config.tried == tried and config.cache is config
    cache.save()
    assert path.read_bytes() == b"timings"


def test_unwritable_timing_cache_does_not_fail_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TimingCache(Config(), tmp_path / "gone" / "timing.cache").save()
    assert "(No such file or directory); the next build" in capsys.readouterr().err


def test_missing_backends_explain_how_to_install() -> None:
    if not torch.cuda.is_available():
        assert "tensorrt" in TENSORRT.unavailable_reason() or "no NVIDIA GPU" in TENSORRT.unavailable_reason()
        assert RTX.unavailable_reason()


@pytest.mark.parametrize(
    ("target", "here", "fit"),
    [
        ("sm90", "sm90", True),
        ("sm90", "sm89", False),
        ("sm80,sm89", "sm89", True),
        ("sm80,sm89", "sm86", False),
        ("sm80+", "sm120", True),
        ("sm80+", "sm80", True),
        ("sm80+", "sm75", False),
    ],
)
def test_target_includes_gpu_architectures(target: str, here: str, fit: bool) -> None:
    assert target_includes(target, here) == fit
