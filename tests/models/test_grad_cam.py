"""Grad-CAM lights up what speaks for a class, at a known place and time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssv2rt.core.recipes import Model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.grad_cam import grad_cam
from ssv2rt.models.registry import build_model


class Brightness(nn.Module):
    """The mean over a clip of what a convolution finds that adds up neighboring pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x)).mean((2, 3, 4))


def test_it_lights_up_what_speaks_for_a_class_where_and_when_it_is() -> None:
    network = ClipModel(Brightness(), features=1, classes=2).eval()
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    clips = torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8)
    clips[0, 2:4, 4:10, 20:26] = 255
    clips[1, 6:8, 20:26, 4:10] = 255
    heat = grad_cam(network, clips, torch.tensor([0, 0]))
    assert heat.shape == (2, 8, 32, 32) and heat.amax((1, 2, 3)).tolist() == [1, 1]
    inside = torch.zeros(2, 8, 32, 32, dtype=torch.bool)
    inside[0, 1:5, 3:11, 19:27] = True  # a kernel of 3 sees one pixel more
    inside[1, 5:8, 19:27, 3:11] = True
    assert not heat[~inside].any()
    assert heat[0, 2:4, 5:9, 21:25].mean() > 0.5 and heat[1, 6:8, 21:25, 5:9].mean() > 0.5
    assert not grad_cam(network, clips, torch.tensor([1, 1])).any()


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *((name, "cpu") for name in ("resnet3d18", "resnet2d18-lstm", "i3d", "c3d", "r2plus1d_18")),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("resnet3d18", "resnet2d18-lstm")),
    ],
)
def test_every_kind_of_network_is_explained(name: str, device: str) -> None:
    torch.manual_seed(0)
    network = build_model(Model(name=name, width=8), 4).eval().to(device)
    clips = torch.randint(0, 256, (2, 8, 48, 48, 3), dtype=torch.uint8).to(device)
    near = 1e-3 if device == "cpu" else 0.05  # TF32
    with torch.inference_mode():
        expected = network(clips)
    lit = 0
    for label in range(4):
        one = grad_cam(network, clips, torch.tensor([0, label], device=device))
        two = grad_cam(network, clips[1:], torch.tensor([label], device=device))
        assert one.shape == (2, 8, 48, 48) and one.isfinite().all() and one.min() >= 0 and one.max() <= 1
        assert torch.allclose(one[1], two[0], atol=near)
        lit += int(one.amax((1, 2, 3)).round().sum())
    assert lit >= 2  # random weights may speak against a class everywhere
    assert torch.allclose(network(clips), expected, atol=near / 10)
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
