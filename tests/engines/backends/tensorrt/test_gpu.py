"""TensorRT engines on a GPU, with the installed one of the two packages."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Engine
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.backends.tensorrt.backend import AMPERE_PLUS, RTX, TENSORRT, TensorRtBackend
from ssv2rt.engines.base import Graph
from ssv2rt.engines.build import build_engine
from ssv2rt.engines.bundle import Bundle, open_bundle
from ssv2rt.models.clip_model import ClipModel
from tests.engines.backends.tensorrt.test_runner import BATCH, bundle_of
from tests.engines.conftest import clips

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=[TENSORRT, RTX], ids=["tensorrt", "rtx"])
def engine_backend(request: pytest.FixtureRequest) -> TensorRtBackend:
    backend: TensorRtBackend = request.param
    if torch.cuda.is_available() and (reason := backend.unavailable_reason()):
        pytest.skip(reason)
    return backend  # without a GPU, the marker decides whether the test runs


def built(engine_backend: TensorRtBackend, graph: Path, folder: Path, **settings: Any) -> Bundle:
    """Builds an engine for the current GPU in a subfolder of `folder`."""
    place = folder / "fp16"
    place.mkdir()
    shutil.copy(graph, place / "model.onnx")
    engine = Engine(batch=BATCH, **settings)
    try:
        made = engine_backend.build(Graph(place / "model.onnx", None), engine)
    except UserError as error:
        if "does not build for" in str(error):
            pytest.skip(str(error))
        raise
    target = engine_backend.target_of(engine)
    return bundle_of(place, embedding=64, engine_file=made.file, settings=made.settings, target=target)


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8half"])
def test_engines_match_pytorch(
    engine_backend: TensorRtBackend, model: ClipModel, graphs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    bundle = built(engine_backend, graphs[name], tmp_path, precision="int8" if name == "int8half" else name)
    kind = {"fp32": "FP32", "fp16": "FP16", "int8half": "INT8"}[name]
    assert bundle.info.settings["layers"]["convolutions"][kind] >= 16  # of 20; TensorRT may fuse some
    runner = engine_backend.load(bundle)
    with torch.inference_mode():
        found, expected = runner.start(clips(4))(), (model(clips(4)), model.features(clips(4)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and ours.dtype == torch.float32 and ours.device.type == "cpu"
        assert ((ours - theirs).norm() / theirs.norm()).item() < {"fp32": 1e-4, "fp16": 5e-3, "int8half": 0.08}[name]


def test_build_engine_from_run_and_score(tiny_run: Run, tiny_set: Path) -> None:
    if TENSORRT.unavailable_reason():
        pytest.skip(TENSORRT.unavailable_reason())
    bundle, failures = build_engine(tiny_run, load_engine_recipe("fp16"), "tensorrt", open_manifest(tiny_set))
    assert not failures and bundle.info.backend == "tensorrt"
    assert (bundle.info.verification or {})["by"] == "tensorrt"
    runner = load_runner(open_bundle(bundle.path))
    assert runner(clips(3)).shape == (3, len(bundle.info.labels))
    assert [path.suffix for path in tiny_run.engines.glob("timing-*")] == [".cache"]
    settings = ("gate.clips=10", "gate.max_top1_drop=100", "calibration.clips=20")
    bundle, _ = build_engine(tiny_run, load_engine_recipe("int8", settings), "tensorrt", open_manifest(tiny_set))
    figures = open_bundle(bundle.path).info.verification or {}
    assert figures["clips_per_second"] > 0 and figures["clips_per_second_fp16"] > 0


def test_cuda_graph_logits_match_plain_logits(
    engine_backend: TensorRtBackend, graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built(engine_backend, graphs["fp16"], tmp_path)
    recorded = engine_backend.load(bundle)
    plain = engine_backend.load(Bundle(bundle.path, bundle.info.model_copy(update={"settings": {"cuda_graph": False}})))
    for seed, count in enumerate((4, 4, 4, 6, 1, 4, 4, 4)):
        torch.testing.assert_close(recorded(clips(count, seed)), plain(clips(count, seed)), rtol=1e-3, atol=1e-3)
    assert "CUDA graph" not in capsys.readouterr().err


def test_gpu_clips_are_not_copied_to_the_cpu(
    engine_backend: TensorRtBackend, graphs: dict[str, Path], tmp_path: Path
) -> None:
    runner = engine_backend.load(built(engine_backend, graphs["fp16"], tmp_path))
    expected = [runner(clips(4, seed)) for seed in range(4)]
    batches = [clips(4, seed).cuda() for seed in range(4)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # PyTorch raises an error at each synchronization
    try:
        results = [runner.logits_on_gpu(batch) for batch in batches]
        doubled = [logits * 2 for logits in results]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, twice, theirs in zip(results, doubled, expected, strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(twice.cpu(), 2 * theirs, rtol=1e-3, atol=1e-3)


def test_batches_in_flight_are_not_mixed_up(
    engine_backend: TensorRtBackend, graphs: dict[str, Path], tmp_path: Path
) -> None:
    runner = engine_backend.load(built(engine_backend, graphs["fp16"], tmp_path))
    expected = [runner(clips(4, seed)) for seed in range(6)]
    started = [runner.start(clips(4, seed).cuda()) for seed in range(6)]  # nothing else holds these clips
    for pending, theirs in zip(started, expected, strict=True):
        torch.testing.assert_close(pending().logits, theirs, rtol=1e-3, atol=1e-3)


def test_version_and_hardware_compatible_engines_load(graphs: dict[str, Path], tmp_path: Path) -> None:
    if TENSORRT.unavailable_reason():
        pytest.skip(TENSORRT.unavailable_reason())
    bundle = built(TENSORRT, graphs["fp16"], tmp_path, version_compatible=True, hardware_compatible=True)
    assert bundle.info.target == AMPERE_PLUS
    assert TENSORRT.load(bundle)(clips(4)).isfinite().all()
    (cache,) = tmp_path.glob("timing-tensorrt-*.cache")
    assert cache.stat().st_size > 0
