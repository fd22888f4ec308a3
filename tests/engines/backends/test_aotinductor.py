"""AOTInductor: packages match PyTorch, refuse unsupported inputs, and leave no temporary files."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import DTYPES, gpu_architecture, native_bf16
from ssv2rt.core.recipes import BatchProfile, Engine
from ssv2rt.engines.backends import aotinductor
from ssv2rt.engines.backends import registry as backends
from ssv2rt.engines.base import Graph
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.export import INPUT, EngineModel, export_onnx
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import model_names
from tests.engines.conftest import CLIP, LABELS, clips, features, model_with_random_statistics

BATCH = BatchProfile(min=1, best=4, max=6)
BOUNDS = {"fp32": 1e-4, "bf16": 0.04, "fp16": 0.04}
"""Allowed difference from the fp32 network, relative to its largest logit."""
CPU = torch.device("cpu")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, engines are built for it")

BUILD = """
import sys
from pathlib import Path
from ssv2rt.engines.backends import aotinductor
from ssv2rt.engines.base import Graph
from ssv2rt.engines.export import EngineModel
from ssv2rt.core.recipes import BatchProfile, Engine
from ssv2rt.core.atomic_files import scratch_folder
from tests.engines.conftest import model_with_random_statistics
with scratch_folder(Path("bundles")) as folder:
    file = folder / "model.onnx"
    file.write_bytes(Path(sys.argv[1]).read_bytes())
    model = EngineModel(model_with_random_statistics()).eval()
    aotinductor.build(Graph(file, model), Engine(precision="fp32", batch=BatchProfile()))
"""


def build(folder: Path, model: ClipModel, precision: str, batch: BatchProfile = BATCH, threads: int = 0) -> Bundle:
    """Builds an engine of a model in a new folder."""
    settings = Engine(precision=precision, batch=batch, threads=threads)  # type: ignore[arg-type]
    export_onnx(model, folder / "model.onnx", clip=CLIP, labels=LABELS)
    built = aotinductor.build(Graph(folder / "model.onnx", EngineModel(model).eval()), settings)
    info = BundleInfo(
        backend="aotinductor",
        backend_version=aotinductor.version(),
        precision=precision,
        target=aotinductor.target_of(settings),
        model="tiny",
        input=INPUT,
        input_shape=("batch", CLIP.frames, CLIP.size, CLIP.size, 3),
        batch=batch,
        clip=CLIP,
        labels=LABELS,
        embedding=model.head.in_features,
        weights_sha256="",
        files={},
        onnx_file="model.onnx",
        engine_file=built.file,
        settings=json.loads(json.dumps(built.settings)),
        rebuild="ssv2rt build-engine tiny --backend aotinductor",
    )
    return Bundle(folder, info)


def error(runner: Callable[[torch.Tensor], torch.Tensor], model: ClipModel, count: int) -> float:
    """Largest difference of two logits, relative to the largest logit."""
    with torch.inference_mode():
        logits, expected = runner(clips(count, seed=9)), model(clips(count, seed=9))
    assert logits.shape == expected.shape == (count, len(LABELS))
    assert logits.dtype == torch.float32 and logits.device == CPU
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def files_in(folder: Path) -> list[Path]:
    """All files, without folders: PyTorch creates an empty one when its compiler is imported."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """An engine in fp32, built in a folder in which no other files may appear."""
    place, temporary = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("TMPDIR", str(temporary))
        made = {"fp32": build(tmp_path_factory.mktemp("fp32"), model_with_random_statistics(), "fp32")}
        assert os.environ["TMPDIR"] == str(temporary)
    assert not list(place.iterdir()) and not files_in(temporary)
    return made


@pytest.fixture
def bundle_in_bf16(tmp_path: Path) -> Bundle:
    return build(tmp_path, model_with_random_statistics(), "bf16")


@pytest.mark.slow
def test_packages_in_bf16_match_pytorch_and_are_smaller(
    bundles: dict[str, Bundle], bundle_in_bf16: Bundle, model: ClipModel
) -> None:
    check_package(bundle_in_bf16, model, "bf16")
    assert bundle_in_bf16.engine_file.stat().st_size < 0.8 * bundles["fp32"].engine_file.stat().st_size


@pytest.mark.slow
def test_packages_match_pytorch_deterministically(bundles: dict[str, Bundle], model: ClipModel) -> None:
    check_package(bundles["fp32"], model, "fp32")


def check_package(bundle: Bundle, model: ClipModel, precision: str) -> None:
    runner = aotinductor.load(bundle)
    for count in (1, 3, BATCH.max):
        assert error(runner, model, count) < BOUNDS[precision]
        embedding, expected = runner.start(clips(count))().embedding, features(model, clips(count))
        assert embedding is not None and embedding.dtype == torch.float32 and embedding.device == CPU
        assert (embedding - expected).abs().max() / expected.abs().max() < BOUNDS[precision]
    first = runner(clips(4))
    kept = first.clone()
    assert not torch.equal(runner(clips(4, seed=1)), first)
    assert torch.equal(first, kept) and torch.equal(runner(clips(4)), kept)
    assert torch.equal(aotinductor.load(bundle)(clips(4)), kept)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(runner(clips(4)[order]), kept[order])


@pytest.mark.slow
@on_cpu
def test_bundle_contents(bundles: dict[str, Bundle]) -> None:
    for precision, bundle in bundles.items():
        assert {file.name for file in bundle.path.iterdir()} == {"model.onnx", "engine.pt2"}
        assert bundle.info.settings["arithmetic"] == precision
        assert bundle.info.settings["clips_per_second"][precision] > 0
        assert bundle.info.target == aotinductor.target()


@pytest.mark.slow
def test_clips_in_any_memory_layout_are_accepted(bundles: dict[str, Bundle]) -> None:
    runner = aotinductor.load(bundles["fp32"])
    many = clips(6)
    assert torch.equal(runner(many[::2]), runner(many[::2].contiguous()))
    turned = many.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous() and torch.equal(runner(turned), runner(many))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [clips(0), clips(BATCH.max + 1), clips(2).float(), clips(2)[:, :3], clips(2)[..., :2]],
    ids=["none", "too many", "float", "too short", "two colors"],
)
def test_unsupported_clips_are_refused(bundles: dict[str, Bundle], wrong: torch.Tensor) -> None:
    runner = aotinductor.load(bundles["fp32"])
    with pytest.raises(
        UserError, match="takes 1 to 6 of torch.uint8 .4, 32, 32, 3.; .*rebuild it with `ssv2rt"
    ) as refusal:
        runner(wrong)
    assert "\n" not in str(refusal.value)


def test_int8_and_onnx_only_networks_are_refused(tmp_path: Path, model: ClipModel) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="'int8': aotinductor takes fp32, bf16 and fp16; take openvino or tensorrt"):
        aotinductor.build(Graph(file, EngineModel(model)), Engine(precision="int8"))
    with pytest.raises(
        UserError, match="builds from runs, and not from ONNX files; take --backend openvino or tensorrt"
    ):
        aotinductor.build(Graph(file, None), Engine(precision="fp32"))


def changed(bundle: Bundle, folder: Path, content: bytes | None = None, **entries: object) -> Bundle:
    """A copy of a bundle with another engine file or other entries in bundle.json."""
    (folder / "engine.pt2").write_bytes(bundle.engine_file.read_bytes() if content is None else content)
    return Bundle(folder, bundle.info.model_copy(update=entries))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "short", "text"])
def test_damaged_packages_are_one_line_errors(
    bundles: dict[str, Bundle], tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = bundles["fp32"].engine_file.read_bytes()
    content = {"empty": b"", "short": whole[: len(whole) // 2], "text": b"not a package\n" * 1000}[damage]
    with pytest.raises(UserError, match=r"cannot load .*engine.pt2 \(.+\); rebuild it with `ssv2rt") as refusal:
        aotinductor.load(changed(bundles["fp32"], tmp_path, content))
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"embedding": 63}, "features 64, but 63 in bundle.json"),
        ({"labels": LABELS[:4]}, "classes 5, but 4 in bundle.json"),
        ({"batch": BatchProfile(max=32)}, "largest batch 6, but 32 in bundle.json"),
        ({"input_shape": ("batch", 8, 32, 32, 3)}, "clips 4x32x32x3, but 8x32x32x3 in bundle.json"),
        ({"settings": {"threads": "many"}}, "invalid literal for int"),
        ({"settings": {"threads": -1}}, "expects a positive integer"),
    ],
)
def test_bundles_that_do_not_match_the_package_are_refused(
    bundles: dict[str, Bundle], tmp_path: Path, entries: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=f"{says}.*; rebuild it with `ssv2rt"):
        aotinductor.load(changed(bundles["fp32"], tmp_path, **entries))


@pytest.mark.slow
def test_engines_are_refused_on_other_targets(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles["fp32"]
    monkeypatch.setattr(backends, "backend", lambda name: aotinductor)
    assert backends.load_runner(bundle)(clips(1)).shape == (1, len(LABELS))
    older = Bundle(bundle.path, bundle.info.model_copy(update={"backend_version": "2.0.0"}))
    with pytest.raises(UserError, match="was built by PyTorch 2.0.0, and .*; rebuild it with"):
        backends.load_runner(older)
    fewer = {name: value for name, value in torch.cpu.get_capabilities().items() if "avx512" not in name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: fewer | {"sse": False})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="was built for .*, and this machine has .*; rebuild it with"):
        backends.load_runner(bundle)


def test_missing_build_requirements_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not aotinductor.unavailable_reason()
    assert "no C++ compiler 'g++'; run `apt-get install g++`" in aotinductor.cannot_build_reason()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert "too old" in aotinductor.unavailable_reason() and "too old" in aotinductor.cannot_build_reason()


def test_compiler_errors_are_one_line_and_leave_no_files(
    tmp_path: Path, model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(
            "C++ compile error\n\nCommand:\ng++ -O3 x.cpp\n\nOutput:\nx.cpp:1:2: error: no such header\n ~^~"
        )

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(UserError, match=r"cannot compile it \(x.cpp:1:2: error: no such header\); take") as refusal:
        build(tmp_path, model, "fp32")
    assert "\n" not in str(refusal.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_packages_with_wrong_outputs_are_refused(model: ClipModel) -> None:
    class Wrong:
        def __init__(self, which: str) -> None:
            self.which = which == "logits"

        def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            logits, embedding = networks["fp32"](inputs[0])
            return [logits.flip(1), embedding] if self.which else [logits, embedding.flip(1)]

    network = EngineModel(model).eval()
    networks = {name: aotinductor._CastModel(network, DTYPES[name]) for name in ("fp32", "bf16")}
    for which in ("logits", "embedding"):
        with pytest.raises(UserError, match=r"what PyTorch compiled in bf16 is wrong by \d+.\d% on 2 clips"):
            aotinductor._measure_and_check({"bf16": Wrong(which)}, networks, clips(2))


@pytest.mark.slow
@on_cpu
def test_loading_needs_neither_the_network_nor_a_compiler(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    torch.save(clips(2), tmp_path / "clips.pt")
    script = (
        "import sys, torch\n"
        "package = torch._C._aoti.AOTIModelPackageLoader(sys.argv[1], 'model', False, 1, -1)\n"
        "torch.save(package.run([torch.load('clips.pt')])[0], 'logits.pt')\n"
        "assert not any(name.startswith('ssv2rt') for name in sys.modules)\n"
    )
    where = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script, str(bundles["fp32"].engine_file)]
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert torch.equal(torch.load(tmp_path / "logits.pt"), aotinductor.load(bundles["fp32"])(clips(2)))
    assert {file.name for file in tmp_path.iterdir()} == {"clips.pt", "logits.pt"}


@pytest.mark.slow
@on_cpu
def test_thread_count_comes_from_the_bundle(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        runner = aotinductor.load(changed(bundles["fp32"], tmp_path, settings={"threads": 1}))
        assert torch.get_num_threads() == 1
        one = runner(clips(3))
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(aotinductor.load(bundles["fp32"])(clips(3)), one, atol=1e-4)
    assert torch.get_num_threads() == before


@on_cpu
@pytest.mark.slow
def test_fp16_on_a_cpu_uses_the_fastest_arithmetic(tmp_path: Path, model: ClipModel) -> None:
    settings = build(tmp_path, model, "fp16").info.settings
    rates = settings["clips_per_second"]
    assert set(rates) == ({"bf16", "fp32"} if native_bf16(CPU) else {"fp32"})
    assert settings["arithmetic"] == max(rates, key=lambda name: rates[name])


@pytest.mark.slow
def test_engine_with_a_maximum_batch_of_one(tmp_path: Path, model: ClipModel) -> None:
    runner = aotinductor.load(build(tmp_path, model, "fp32", BatchProfile(min=1, best=1, max=1)))
    assert error(runner, model, 1) < BOUNDS["fp32"]
    with pytest.raises(UserError, match="takes 1 to 1 of"):
        runner(clips(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_model_compiles_and_matches_pytorch(name: str, tmp_path: Path) -> None:
    model = model_with_random_statistics(name)
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        runner = aotinductor.load(build(folder, model, precision))
        network = aotinductor._CastModel(EngineModel(model), DTYPES[precision])

        def eager(batch: torch.Tensor, network: torch.nn.Module = network) -> torch.Tensor:
            logits: torch.Tensor = network(batch)[0]
            return logits

        for count in (1, 3, BATCH.max):
            # A narrow LSTM has an error of 10% in bf16, compiled or not.
            assert error(runner, model, count) < max(BOUNDS[precision], 2 * error(eager, model, count))


@on_cpu
@pytest.mark.slow
def test_wrong_memory_format_of_pytorch_is_detected(tmp_path: Path) -> None:
    """PyTorch 2.13 fails after a convolution of one channel. If this test fails, the check may no longer be needed."""
    with pytest.raises(UserError, match="what PyTorch compiled in fp32 is wrong"):
        build(tmp_path, model_with_random_statistics("i3d", width=4), "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [None, 7, 11])
def test_builds_log_one_line_and_leave_no_files_when_interrupted(
    bundles: dict[str, Bundle], tmp_path: Path, seconds: float | None
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(bundles["fp32"].onnx_file)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    if seconds:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    if seconds is None:
        assert process.returncode == 0 and len(said.splitlines()) == 1 and said.startswith("compiling for")
    assert not files_in(tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_packages_match_pytorch(tmp_path: Path, model: ClipModel, precision: str) -> None:
    if reason := aotinductor.cannot_build_reason():
        pytest.skip(reason)
    bundle = build(tmp_path, model, precision)
    assert bundle.info.target == gpu_architecture(torch.device("cuda", 0))
    assert bundle.info.settings["arithmetic"] == precision
    runner = aotinductor.load(bundle)
    for count in (1, 3, BATCH.max):
        assert error(runner, model, count) < BOUNDS[precision]
    on_gpu = runner(clips(4).cuda())
    assert on_gpu.device == CPU and torch.equal(runner(clips(4)), on_gpu)
    pending = [runner.start(clips(4, seed=seed)) for seed in (1, 2)]
    assert all(
        torch.equal(wait().logits, runner(clips(4, seed=seed))) for wait, seed in zip(pending, (1, 2), strict=True)
    )
