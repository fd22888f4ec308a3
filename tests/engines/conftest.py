"""Shared fixtures: a small network, clips for it, and its ONNX graph in every precision."""

import functools
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from ssv2rt.core.recipes import Clip, Model
from ssv2rt.engines.export import export_onnx
from ssv2rt.engines.half import convert_to_half
from ssv2rt.engines.quantization import quantize
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model

CLIP = Clip(frames=4, size=32)
LABELS = tuple("abcde")
Narrow = Callable[[str], tuple[ClipModel, Path]]


def model_with_random_statistics(name: str = "resnet3d18", width: int = 8) -> ClipModel:
    """A model whose batch norms have random parameters and running statistics, as after training."""
    torch.manual_seed(0)
    model = build_model(Model(name=name, width=width), len(LABELS))
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm3d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model.eval()


def features(model: ClipModel, batch: torch.Tensor) -> torch.Tensor:
    """The expected embedding of an engine."""
    with torch.inference_mode():
        return model.features(batch)


def clips(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def model() -> ClipModel:
    return model_with_random_statistics()


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    """Builds a narrow network of the registry and its fp32 graph, by name. Tests must not modify either."""
    folder = tmp_path_factory.mktemp("narrow")

    @functools.cache
    def export(name: str) -> tuple[ClipModel, Path]:
        model, path = model_with_random_statistics(name, width=4), folder / f"{name}.onnx"
        export_onnx(model, path, clip=CLIP, labels=LABELS)
        return model, path

    return export


@pytest.fixture(scope="session")
def graphs(model: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Graphs in fp32, fp16, int8 for OpenVINO, and int8 with fp16 for TensorRT. Tests must not modify them."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "int8half")}
    export_onnx(model, paths["fp32"], clip=CLIP, labels=LABELS)
    onnx.save(convert_to_half(onnx.load(paths["fp32"])), paths["fp16"])
    quantize(paths["fp32"], paths["int8"], [clips(4, seed).numpy() for seed in range(8)], method="minmax")
    onnx.save(convert_to_half(onnx.load(paths["int8"])), paths["int8half"])
    return paths
