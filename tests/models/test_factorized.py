"""Temporal shifts, the average over windows, and the frames of SlowFast's slow pathway."""

import pytest
import torch
from torch.nn import functional as F

from ssv2rt.core.recipes import Model
from ssv2rt.models.factorized import ShiftConv3d, shift, shifted_kernels
from ssv2rt.models.pooling import WindowMean
from ssv2rt.models.registry import build_model
from ssv2rt.models.slowfast import slow_frames


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [4, 8, 20, 64])
def test_a_shift_and_a_convolution_are_one_convolution_over_three_frames(channels: int, frames: int) -> None:
    layer, x = ShiftConv3d(channels, 6), torch.randn(2, channels, frames, 5, 5)
    eighth = channels // 8
    kernel = torch.zeros(6, channels, 3, 1, 1)
    kernel[:, :eighth, 2] = layer.weight[:, :eighth, 0]
    kernel[:, eighth : 2 * eighth, 0] = layer.weight[:, eighth : 2 * eighth, 0]
    kernel[:, 2 * eighth :, 1] = layer.weight[:, 2 * eighth :, 0]
    with torch.no_grad():
        assert torch.allclose(layer(x), F.conv3d(x, kernel, padding=(1, 0, 0)), atol=1e-5)
        assert torch.equal(layer.folded().weight, kernel) and torch.allclose(layer(x), layer.folded()(x), atol=1e-5)


def test_shift_moves_channels_by_one_frame_and_fills_with_zeros() -> None:
    x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1).expand(1, 16, 4, 1, 1)
    moved = shift(x)[0, :, :, 0, 0].tolist()
    assert moved[:4] == [[2, 3, 4, 0]] * 2 + [[0, 1, 2, 3]] * 2 and moved[4:] == [[1, 2, 3, 4]] * 12


def test_tsm_shifts_each_block_of_resnet50_and_every_second_of_resnet101() -> None:
    found = {}
    for name in ("tsm-r50", "tsm-r101"):
        found[name] = shifted_kernels(build_model(Model(name=name, width=8), 5))
    assert len(found["tsm-r50"]) == 16
    numbers = [kernel.split(".")[1:3] for kernel in sorted(found["tsm-r101"])]
    assert len(numbers) == 2 + 2 + 12 + 2 and all(int(number) % 2 == 0 for _, number in numbers)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (3, 5), (7, 10), (1, 1), (9, 6)])
def test_window_mean_is_the_mean_over_all_windows(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 4, *size)
    window = (4, min(7, size[0]), min(7, size[1]))
    expected = F.adaptive_avg_pool3d(F.avg_pool3d(x, window, stride=1), 1).flatten(1)
    assert torch.allclose(WindowMean()(x), expected, atol=1e-6)
    if max(size) <= 7:
        assert torch.allclose(WindowMean()(x), x.mean((2, 3, 4)), atol=1e-6)


def test_window_mean_of_256_pixels_weighs_the_border_half() -> None:
    weights = torch.tensor([1.0, 2, 2, 2, 2, 2, 2, 1]) / 14
    x = torch.randn(2, 3, 8, 8, 8)
    assert torch.allclose(WindowMean()(x), torch.einsum("ncthw,h,w->nc", x, weights, weights) / 8, atol=1e-6)


def test_slow_frames_are_those_of_pytorchvideo() -> None:
    assert slow_frames(32) == [0, 4, 8, 13, 17, 22, 26, 31]
    for frames in range(4, 132, 4):
        assert slow_frames(frames) == torch.linspace(0, frames - 1, frames // 4).long().tolist()
    for frames in range(1, 50):  # as many as the lateral convolutions give
        assert len(slow_frames(frames)) == F.conv1d(torch.ones(1, 1, frames), torch.ones(1, 1, 7), None, 4, 3).shape[2]


def test_slow_pathway_sees_only_its_frames() -> None:
    torch.manual_seed(0)
    backbone = build_model(Model(name="slowfast-r50", width=8), 5).backbone.eval()
    seen = []
    backbone.slow["stem"].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    x = torch.arange(32.0).view(1, 1, 32, 1, 1).expand(1, 3, 32, 32, 32)
    with torch.no_grad():
        assert backbone(x).shape == (1, backbone.feature_size)
    assert seen[0][0, 0, :, 0, 0].tolist() == slow_frames(32)
