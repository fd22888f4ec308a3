"""OpenVINO: several batches in flight, settings of the plugin, and the cache of compiled models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Engine
from ssv2rt.engines.backends import openvino
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.base import Graph
from ssv2rt.engines.bundle import Bundle, open_bundle, sha256
from tests.engines.conftest import LABELS, clips


@pytest.fixture
def loaded(tiny_bundle: Bundle) -> openvino.OpenVinoRunner:
    return openvino.load(tiny_bundle)


def test_batches_in_flight_return_their_own_logits(loaded: openvino.OpenVinoRunner) -> None:
    batches = [clips(1 + seed % 4, seed) for seed in range(4 * loaded.in_flight)]
    alone = [loaded(batch) for batch in batches]
    waits = [
        loaded.start(batch) for batch in batches
    ]  # more than there are requests, so starting one waits for the oldest
    together = [wait().logits for wait in waits]
    backwards = [wait().logits for wait in reversed([loaded.start(batch) for batch in batches])][::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert loaded.in_flight >= 2


def test_logits_and_embeddings_of_batches_in_flight_stay_together(loaded: openvino.OpenVinoRunner) -> None:
    batches = [clips(1 + seed % 4, seed) for seed in range(2 * loaded.in_flight)]
    alone = [loaded.start(batch)() for batch in batches]
    for wait, expected in zip([loaded.start(batch) for batch in batches], alone, strict=True):
        found = wait()
        assert found.embedding is not None and expected.embedding is not None
        assert found.embedding.shape == (len(found.logits), 32) and found.embedding.dtype == torch.float32
        assert torch.equal(found.logits, expected.logits) and torch.equal(found.embedding, expected.embedding)


def test_engine_without_embedding_output_is_loaded(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(tiny_bundle.onnx_file)
    del graph.graph.output[1]
    onnx.save(graph, tmp_path / "model.onnx")
    openvino.build(Graph(tmp_path / "model.onnx", None), Engine())
    facts = tiny_bundle.info.model_dump(mode="json")
    facts["files"] = {path.name: sha256(path) for path in tmp_path.iterdir()}
    del facts["embedding"]
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    old = open_bundle(tmp_path)
    outputs = load_runner(old).start(clips(3))()
    assert old.info.embedding == 0 and outputs.embedding is None
    expected = openvino.load(tiny_bundle)(clips(3))
    assert (outputs.logits - expected).norm() < 0.03 * expected.norm()  # other kernels may round differently


def test_outputs_are_not_overwritten_by_later_batches(loaded: openvino.OpenVinoRunner) -> None:
    """Outputs must be copies: the plugin writes the next batch to the same memory."""
    first = loaded(clips(4, 0))
    kept = first.clone()
    for seed in range(5):
        loaded(clips(4, seed + 1))
    assert torch.equal(first, kept)


def test_clips_in_any_memory_layout(loaded: openvino.OpenVinoRunner) -> None:
    batch = clips(4, 3)
    turned = batch.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    assert not turned.is_contiguous() and torch.equal(loaded(batch), loaded(turned))


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_settings_are_stored_and_passed_to_the_plugin(
    graphs: dict[str, Path], tiny_bundle: Bundle, tmp_path: Path, hint: str, precision: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(graphs["fp32"].read_bytes())
    settings = Engine.model_validate({"precision": precision, "hint": hint, "threads": 1})
    built = openvino.build(Graph(tmp_path / "model.onnx", None), settings)
    assert built.settings["hint"] == hint and built.settings["threads"] == 1
    assert built.settings["arithmetic"] in {"fp32": ("f32",), "bf16": ("bf16", "f32")}[precision]
    info = tiny_bundle.info.model_copy(
        update={"settings": built.settings, "labels": LABELS, "embedding": 64, "engine_file": built.file}
    )
    compiled = openvino.load(Bundle(tmp_path, info))._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("PERFORMANCE_HINT") == hint.upper()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == built.settings["arithmetic"]


def test_compiled_engines_are_cached(tiny_bundle: Bundle) -> None:
    openvino.load(tiny_bundle)
    cache = Path(os.environ["SSV2RT_CACHE"]) / "openvino"
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.blob")}
    assert before
    openvino.load(tiny_bundle)
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*.blob")} == before


def test_ctrl_c_works_after_engines_were_destroyed(tiny_bundle: Bundle) -> None:
    script = (
        "import gc, pathlib, signal, sys\n"
        "from ssv2rt.engines.backends import openvino\n"
        "from ssv2rt.engines.bundle import open_bundle\n"
        "runners = [openvino.load(open_bundle(pathlib.Path(sys.argv[1]))) for _ in range(2)]\n"
        "while runners:\n"
        "    del runners[0]\n"
        "    gc.collect()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tiny_bundle.path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_damaged_compile_cache_is_ignored(tiny_bundle: Bundle) -> None:
    expected = openvino.load(tiny_bundle)(clips(2))
    for path in (Path(os.environ["SSV2RT_CACHE"]) / "openvino").glob("*.blob"):
        path.write_bytes(b"junk")
    assert torch.equal(openvino.load(tiny_bundle)(clips(2)), expected)


def test_unknown_arithmetic_is_refused(tiny_bundle: Bundle) -> None:
    info = tiny_bundle.info.model_copy(update={"settings": {"arithmetic": "f8"}})
    with pytest.raises(UserError, match="arithmetic 'f8' is none of OpenVINO's; rebuild it with"):
        openvino.load(Bundle(tiny_bundle.path, info))
