"""All networks: clips of any size, gradients, the shapes of the papers, and sensitivity to the order of frames."""

import pytest
import torch

from ssv2rt.core.recipes import Model
from ssv2rt.models.c3d import _averaging_matrix
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.i3d import SameConv3d, pad_same
from ssv2rt.models.registry import build_model, model_names

ORDERED = [name for name in model_names() if name.endswith(("-lstm", "-gru", "-latefusion"))]
DISTINCT = [name for name in model_names() if not any(deep in name for deep in ("50-", "34", "101"))]
"""Models with different structures, without those that are only deeper."""


def clips(count: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8)


def shapes_of(model: ClipModel, names: dict[str, str], clip: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Output shapes (C, T, H, W) of the given modules, computed without data."""
    found = {}
    for name, path in names.items():
        model.backbone.get_submodule(path).register_forward_hook(
            lambda m, i, o, name=name: found.update({name: tuple(o.shape[1:])})
        )
    model.backbone(torch.empty(1, 3, *clip, device="meta"))
    return found


@pytest.mark.parametrize("name", DISTINCT)
def test_trains_and_evaluates_clips_of_any_size(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, width=4), 5).channels_last()
    logits = model(clips(frames=3, size=33))
    assert logits.shape == (2, 5) and logits.dtype == torch.float32
    logits.square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
    model.eval()
    with torch.inference_mode():
        for count, frames, size in ((1, 1, 16), (2, 8, 32)):
            raw = clips(count, frames, size)
            logits = model(raw)
            assert logits.shape == (count, 5) and logits.isfinite().all()
            assert torch.allclose(model(raw[:1]), logits[:1], atol=1e-4)


@pytest.mark.parametrize("name", ["c3d", "i3d", "r2plus1d_18", "resnet2d18-lstm"])
def test_every_weight_has_a_gradient_and_layout_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, width=8, dropout=0), 5)
    model(clips(frames=6)).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    model.eval()
    raw = clips()
    with torch.inference_mode():
        before = model(raw)
        assert torch.allclose(model.channels_last()(raw), before, atol=1e-5)
        assert torch.allclose(model(raw.flip(0)).flip(0), before, atol=1e-5)


@pytest.mark.parametrize("name", ["c3d", "i3d", "resnet2d18-lstm", "resnet2d18-gru", "resnet2d18-latefusion"])
def test_trains_in_bf16(name: str) -> None:
    model = build_model(Model(name=name, width=4), 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(clips()).float().square().sum()
    loss.backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_bf16_gradients_are_correct_with_same_padding(frames: int) -> None:
    torch.manual_seed(0)
    layer = SameConv3d(3, 16, 7, stride=2, bias=False)
    x, gradients = torch.randn(4, 3, frames, 16, 16), []
    for low in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            layer(x).float().square().sum().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_parameter_counts() -> None:
    """C3D for UCF101; I3D for Kinetics-400; recurrent layers on the published ResNets."""
    published = {
        ("c3d", 101): 78_409_573,
        ("i3d", 400): 12_287_264 + 1024 * 400 + 400,
        ("resnet2d18-lstm", 10): 11_176_512 + 4 * (512 * 512 * 2 + 2 * 512) + 5130,
        ("resnet2d50-gru", 10): 23_508_032 + 3 * (512 * (2048 + 512) + 2 * 512) + 5130,
        ("resnet2d50-latefusion", 10): 23_508_032 + 4096 * 512 + 512 + 5130,
        ("resnet3d18-pool", 400): 33_371_472,
    }
    for (name, classes), count in published.items():
        with torch.device("meta"):
            model = build_model(Model(name=name), classes)
        assert sum(p.numel() for p in model.parameters()) == count, name


def test_c3d_has_the_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        model = build_model(Model(name="c3d"), 487)
    layers = model.backbone.convolutions
    pools = [str(number) for number, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool3d)]
    found = shapes_of(model, {f"pool{n}": f"convolutions.{k}" for n, k in enumerate(pools, start=1)}, (16, 112, 112))
    assert list(found.values()) == [
        (64, 16, 56, 56),
        (128, 8, 28, 28),
        (256, 4, 14, 14),
        (512, 2, 7, 7),
        (512, 1, 4, 4),
    ]
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv3d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert [tuple(p.shape) for p in model.backbone.connected.parameters()] == [
        (4096, 8192),
        (4096,),
        (4096, 4096),
        (4096,),
    ]
    assert model.head.weight.shape == (487, 4096)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 9), (7, 7)])
def test_c3d_average_pools_other_sizes_to_4x4(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, 4)
    assert torch.allclose(_averaging_matrix(size[0], x) @ x @ _averaging_matrix(size[1], x).T, expected, atol=1e-6)


def test_i3d_has_the_shapes_of_the_paper() -> None:
    with torch.device("meta"):
        model = build_model(Model(name="i3d"), 400)
    names = {"1a": "stem.0", "2c": "stem.3", "5c": "stages.mixed_5c"}
    names |= {name[-2:]: f"stages.{name}" for name in ("mixed_3b", "mixed_3c", "mixed_4b", "mixed_4f", "mixed_5b")}
    assert shapes_of(model, names, (64, 224, 224)) == {
        "1a": (64, 32, 112, 112),
        "2c": (192, 32, 56, 56),
        "3b": (256, 32, 28, 28),
        "3c": (480, 32, 28, 28),
        "4b": (512, 16, 14, 14),
        "4f": (832, 16, 14, 14),
        "5b": (832, 8, 7, 7),
        "5c": (1024, 8, 7, 7),
    }


def test_same_padding_matches_tensorflow() -> None:
    ones = torch.ones(1, 1, 16, 224, 1)
    padded = pad_same(ones, (7, 7, 1), (2, 2, 1))
    assert padded.shape == (1, 1, 21, 229, 1)
    assert padded[0, 0, :, 100, 0].tolist() == [0] * 2 + [1] * 16 + [0] * 3
    assert pad_same(ones, (1, 3, 1), (1, 2, 1))[0, 0, 0, :, 0].tolist() == [1] * 224 + [0]
    for size in range(1, 20):
        for kernel, stride in ((7, 2), (3, 2), (2, 2), (3, 1), (1, 1), (1, 2)):
            length = pad_same(torch.ones(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1)).shape[2]
            assert (length - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("head", ["", "-lstm", "-gru", "-latefusion"])
def test_only_the_frame_average_is_blind_to_time_reversal(head: str) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=f"resnet2d18{head}", width=8), 5).eval()
    raw = clips()
    with torch.inference_mode():
        difference = (model(raw) - model(raw.flip(1))).abs().max()
    assert difference > 1e-4 if head else difference < 1e-5


def test_late_fusion_depends_only_on_first_and_last_frame() -> None:
    model = build_model(Model(name="resnet2d18-latefusion", width=8), 5).eval()
    raw = clips(frames=8)
    with torch.inference_mode():
        before = model(raw)
        raw[:, 1:-1] = 0
        assert torch.allclose(model(raw), before, atol=1e-6)
        raw[:, -1] = 0
        assert not torch.allclose(model(raw), before, atol=1e-4)


def test_recurrent_models_have_at_most_512_features() -> None:
    with torch.device("meta"):
        widths = {name: build_model(Model(name=name), 5).head.in_features for name in ORDERED}
    assert set(widths.values()) == {512} and len(widths) == 6
    assert build_model(Model(name="resnet2d18-lstm", width=8), 5).head.in_features == 64
