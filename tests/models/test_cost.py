"""Parameters and multiply-accumulates of published networks are those that their publishers count."""

import pytest
import torch

from ssv2rt.core.recipes import Model
from ssv2rt.models.cost import count_macs
from ssv2rt.models.registry import build_model, count_parameters

PUBLISHED = [
    # https://github.com/IBM/action-recognition-pytorch, benchmark_mini.md: 87 classes, without the classifier's arithmetic
    ("resnet3d50-pool", 87, 32, 224, 46_339_607, 256_721_289_216 + 2048 * 87),
    ("resnet3d50-pool", 87, 8, 224, 46_339_607, 64_180_322_304 + 2048 * 87),
    ("resnet3d18-pool", 87, 32, 224, 33_210_903, 172_868_763_648 + 512 * 87),
    # the same, of a 2D ResNet-50: a temporal shift has neither weights nor arithmetic
    ("tsm-r50", 87, 8, 224, 23_686_295, 32_697_090_048 + 2048 * 87),
    ("tsm-r50", 87, 16, 224, 23_686_295, 65_394_180_096 + 2048 * 87),
]
"""Network, classes, frames, pixels, parameters, MACs."""

ROUNDED = [
    # https://github.com/facebookresearch/pytorchvideo, model_zoo.md: Kinetics-400, then SSv2, where batch norms are counted
    # too, with five operations for each value
    ("slow-r50", 400, 8, 256, 32.45, 54.52, 0),
    ("slowfast-r50", 400, 32, 256, 34.57, 65.71, 0),
    ("slow-r50", 174, 8, 256, None, 55.10, 5),
    ("slowfast-r50", 174, 32, 256, None, 66.60, 5),
    # https://github.com/open-mmlab/mmaction2, configs/recognition/tsm: two operations for each value of the batch norms
    ("tsm-r50", 174, 8, 224, 23.86, 32.88, 2),
    ("tsm-r50", 174, 16, 224, 23.86, 65.75, 2),
    ("tsm-r101", 174, 8, 224, 42.86, 62.66, 2),
]
"""Network, classes, frames, pixels, parameters in millions, operations in 10^9, and how many of them each value costs that a
batch norm writes."""


def cost(name: str, classes: int, frames: int, size: int) -> tuple[int, int]:
    with torch.device("meta"):
        model = build_model(Model(name=name), classes)
    return sum(p.numel() for p in model.parameters()), count_macs(model, frames=frames, size=size)


@pytest.mark.parametrize(("name", "classes", "frames", "size", "parameters", "macs"), PUBLISHED)
def test_costs_are_exactly_the_published_ones(
    name: str, classes: int, frames: int, size: int, parameters: int, macs: int
) -> None:
    assert cost(name, classes, frames, size) == (parameters, macs)


@pytest.mark.parametrize(("name", "classes", "frames", "size", "millions", "giga", "norm"), ROUNDED)
def test_costs_are_the_published_ones_as_far_as_these_are_given(
    name: str, classes: int, frames: int, size: int, millions: float | None, giga: float, norm: int
) -> None:
    parameters, macs = cost(name, classes, frames, size)
    macs += norm * batch_norm_values(name, frames, size)
    assert millions in (None, round(parameters / 1e6, 2)) and macs / 1e9 == pytest.approx(giga, abs=0.01)


def batch_norm_values(name: str, frames: int, size: int) -> int:
    values = []
    with torch.device("meta"):
        backbone = build_model(Model(name=name), 5).backbone.eval()
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.register_forward_hook(lambda m, i, o: values.append(o.numel()))
        backbone(torch.empty(1, 3, frames, size, size))
    return sum(values)


def test_parameters_for_something_something() -> None:
    """As the classes of IBM and PyTorchVideo have them with 174 classes; TSM's are those of a 2D ResNet."""
    counts = count_parameters(174)
    assert counts["resnet3d50-pool"] == 46_517_870
    assert counts["slow-r50"] == 31_991_022 and counts["slowfast-r50"] == 34_045_558
    assert counts["tsm-r50"] == counts["resnet2d50"] == 23_864_558
    assert counts["resnet3d101-pool"] == counts["resnet3d101"]


def test_counting_does_not_change_the_model() -> None:
    model = build_model(Model(name="resnet3d18", width=4), 5)
    model.train()
    assert count_macs(model, frames=4, size=32) > 0
    assert model.training and next(model.parameters()).device.type == "cpu"
