"""Networks of two pathways, temporal shifts and averages over windows become engines of every precision."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ssv2rt.core.recipes import Clip, Engine
from ssv2rt.engines.backends import openvino
from ssv2rt.engines.backends.tensorrt.backend import RTX
from ssv2rt.engines.base import Graph
from ssv2rt.engines.export import export_onnx
from ssv2rt.engines.graph_nodes import first_convolutions, producers
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.node_origin import blocks
from ssv2rt.engines.quantization import quantize
from ssv2rt.engines.verify import OnnxRunner
from tests.engines.conftest import LABELS, Narrow, clips, model_with_random_statistics

NETWORKS = ("slow-r50", "tsm-r50", "slowfast-r50", "resnet3d50-pool", "i3d")


def quantized(graph: onnx.GraphProto) -> dict[str, bool]:
    """Whether the input of each convolution is int8, by name of the convolution."""
    makers = producers(graph)
    return {
        node.name: makers[node.input[0]].op_type == "DequantizeLinear" for node in graph.node if node.op_type == "Conv"
    }


def test_both_pathways_of_slowfast_start_in_floating_point(narrow: Narrow, tmp_path: Path) -> None:
    model, path = narrow("slowfast-r50")
    stems = [node.name for node in first_convolutions(onnx.load(path).graph)]
    assert len(stems) == 2
    quantize(path, tmp_path / "int8.onnx", [clips(4).numpy()], method="minmax")
    int8 = onnx.load(tmp_path / "int8.onnx")
    assert sorted(name for name, low in quantized(int8.graph).items() if not low) == sorted(stems)
    batch = clips(3, seed=5)
    with torch.inference_mode():
        expected = model(batch)
    for half, bound in ((convert_to_half(onnx.load(path)), 0.01), (convert_to_half(int8), 0.1)):
        onnx.save(half, tmp_path / "half.onnx")
        floats = [t for t in half.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert sum(np.prod(t.dims) for t in floats) <= 6  # mean and scale of three color channels
        assert (OnnxRunner(tmp_path / "half.onnx")(batch) - expected).norm() < bound * expected.norm()
    found = list(blocks(onnx.load(path)))
    assert {"slow.stem", "fast.stem", "lateral.0", "slow.layer1.0", "fast.layer4.2", "head"} <= set(found)
    assert len(found) == 2 * (1 + 16) + 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_engines_of_published_clips_agree_with_pytorch(name: str, tmp_path: Path) -> None:
    import openvino as ov

    clip = Clip(frames=32 if name == "slowfast-r50" else 8, size=256)  # the last map is 8x8, of 4 windows
    model = model_with_random_statistics(name, width=32)
    paths = {kind: tmp_path / kind / "model.onnx" for kind in ("fp32", "fp16", "int8", "int8half")}
    for path in paths.values():
        path.parent.mkdir()
    export_onnx(model, paths["fp32"], clip=clip, labels=LABELS)
    generator = torch.Generator().manual_seed(3)
    batch = torch.randint(0, 256, (2, clip.frames, 256, 256, 3), dtype=torch.uint8, generator=generator)
    quantize(paths["fp32"], paths["int8"], [batch.numpy()], method="minmax")
    onnx.save(convert_to_half(onnx.load(paths["fp32"])), paths["fp16"])
    onnx.save(convert_to_half(onnx.load(paths["int8"])), paths["int8half"])
    low = quantized(onnx.load(paths["int8"]).graph)
    assert len(low) - sum(low.values()) == len(first_convolutions(onnx.load(paths["fp32"]).graph))
    with torch.inference_mode():
        expected = model(batch)
    spread = (expected - expected.mean(1, keepdim=True)).norm()
    for kind, bound in (("fp32", 1e-3), ("fp16", 0.02), ("int8", 0.2), ("int8half", 0.2)):
        assert (OnnxRunner(paths[kind])(batch) - expected).norm() < bound * spread, kind
    for kind in ("fp32", "int8"):
        built = openvino.build(Graph(paths[kind], None), Engine(precision=kind))  # type: ignore[arg-type]
        compiled = ov.Core().compile_model(
            paths[kind].with_name(built.file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        logits = torch.from_numpy(compiled(batch.numpy())["logits"])
        assert (logits - expected).norm() < (1e-3 if kind == "fp32" else 0.2) * spread, kind
    if not RTX.cannot_build_reason():
        for kind, precision in (("fp16", "fp16"), ("int8half", "int8")):
            scratch = tmp_path / f"rtx-{kind}" / ".scratch.partial"
            scratch.mkdir(parents=True)
            graph = Graph(Path(shutil.copy(paths[kind], scratch / "model.onnx")), None)
            layers = RTX.build(graph, Engine(precision=precision, targets=("sm89",))).settings["layers"]  # type: ignore[arg-type]
            assert sum(layers["convolutions"].values()) == len(low), layers
            if kind == "int8half":
                assert layers["convolutions"]["INT8"] > 0.9 * len(low), layers
