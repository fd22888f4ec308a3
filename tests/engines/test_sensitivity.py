"""Mixed precision: the block that int8 harms most is found, and stays in floating point."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.recipes import Clip, Data, Model
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.engines.build import build_engine_from_source
from ssv2rt.engines.calibration import Clips
from ssv2rt.engines.node_origin import blocks
from ssv2rt.engines.source import Source, source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model


@pytest.fixture
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def network_with_a_sensitive_block(manifest: Manifest) -> Source:
    """A network with one block that int8 cannot represent: a channel is a thousand times as large as all others.

    The next convolution scales that channel down again, so that nothing changes in floating point.
    """
    torch.manual_seed(0)
    model: ClipModel = build_model(Model(name="resnet3d18", width=8, dropout=0.0), 10).eval()
    block = model.backbone.layer2[0]  # type: ignore[index, union-attr]
    norm, second = block.conv1[1], block.conv2[0]
    with torch.no_grad():
        norm.bias += 0.5
        norm.weight[0] *= 1000
        norm.bias[0] *= 1000
        second.weight[:, 0] /= 1000
    clip = Clip(frames=4, size=32)
    fit_head(model, manifest, clip)
    return source_of_model(model, "sensitive", manifest.labels, clip)


def fit_head(model: ClipModel, manifest: Manifest, clip: Clip) -> None:
    """Fits the classifier by least squares. There are more features than clips, so it is exact on the training clips."""
    part = manifest.split("train")
    batches = list(Clips(part, np.arange(len(part)), clip, Data()).batches("fitting"))
    with torch.no_grad():
        features = torch.cat([model.features(batch.clips) for batch in batches])
        mean, spread = features.mean(0), features.std(0) + 1e-6
        wanted = torch.nn.functional.one_hot(torch.cat([batch.labels for batch in batches]), 10).float()
        weights = torch.linalg.lstsq((features - mean) / spread, wanted, driver="gelsd").solution / spread[:, None]
        model.head.weight.copy_(weights.T)
        model.head.bias.copy_(-(mean @ weights))


def test_the_most_sensitive_block_stays_in_float(manifest: Manifest, tmp_path: Path) -> None:
    settings = ("calibration.clips=40", "gate.clips=10", "gate.max_top1_drop=100")
    source = network_with_a_sensitive_block(manifest)
    recipe = load_engine_recipe("int8", (*settings, "calibration.max_drop=0"))
    bundle, failures = build_engine_from_source(source, tmp_path, recipe, "openvino", manifest)
    assert not failures
    found = json.loads((bundle.path / "bundle.json").read_text())["calibration"]
    assert found["kept"][0] == "layer2.0" == max(found["sensitivity"], key=found["sensitivity"].get)
    assert found["drop_without_any"] > 0 >= found["drop"]
    graph = onnx.load(bundle.onnx_file)
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    source.export(tmp_path / "float.onnx")
    kept = set(blocks(onnx.load(tmp_path / "float.onnx"))["layer2.0"])
    kinds = {node.name: makers.get(node.input[1]) for node in graph.graph.node if node.op_type == "Conv"}
    assert all(kind != "DequantizeLinear" for name, kind in kinds.items() if name in kept)
    assert "DequantizeLinear" in kinds.values()
