"""Quantized weights are stored in 8 bits."""

from pathlib import Path

import onnx
import torch

from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.calibration import ChosenClips
from ssv2rt.engines.quantization import convert_to_fp8, fold_weights
from ssv2rt.engines.source import source_of_model
from ssv2rt.engines.unlabeled import GeneratedClips
from ssv2rt.engines.verify import OnnxRunner
from tests.engines.conftest import CLIP, LABELS, clips, model_with_random_statistics


def test_weights_are_stored_in_8_bits_with_the_same_results(graphs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("int8", "fp8"):
        model = onnx.load(graphs["int8"])
        model = convert_to_fp8(model) if name == "fp8" else model
        onnx.save(model, tmp_path / "before.onnx")
        onnx.save(fold_weights(model), tmp_path / "after.onnx")
        before, after = (OnnxRunner(tmp_path / f"{which}.onnx").start(clips(4))() for which in ("before", "after"))
        for ours, theirs in zip(after, before, strict=True):
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)
        sizes = {which: (tmp_path / f"{which}.onnx").stat().st_size for which in ("before", "after")}
        assert sizes["after"] < 0.4 * sizes["before"]
        assert not any("weight" in node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")


def test_an_int8_bundle_is_smaller_than_an_fp16_bundle(tmp_path: Path) -> None:
    source = source_of_model(model_with_random_statistics(width=16), "net", LABELS, CLIP)
    data = ChosenClips(GeneratedClips(8, CLIP), GeneratedClips(8, CLIP))
    sizes = {}
    for precision in ("fp16", "int8"):
        recipe = load_engine_recipe(precision, ("gate.clips=8", "calibration.clips=8"))
        bundle, failures = build_engine_from_source(source, tmp_path, recipe, "openvino", data)
        assert not failures
        sizes[precision] = sum(file.stat().st_size for file in bundle.path.iterdir())
    assert sizes["int8"] < 0.7 * sizes["fp16"]
