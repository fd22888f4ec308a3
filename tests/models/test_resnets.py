"""ResNets: published shapes and parameter counts, memory format, and the limits of a frame average."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Clip, Model
from ssv2rt.models.clip_model import MEAN, STD, ClipModel, Normalize, mean_over_views
from ssv2rt.models.conv import Conv2d, Conv3d
from ssv2rt.models.registry import build_model, model_names
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe

THREE_D = [name for name in model_names() if name.startswith("resnet3d")]


def parameters(model: ClipModel) -> int:
    return sum(p.numel() for p in model.parameters())


def clips(count: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize("name", THREE_D)
def test_stem_shape(name: str) -> None:
    with torch.device("meta"):
        stem = build_model(Model(name=name), 174).backbone.stem[0]
    assert stem.weight.numel() == 28_224 and stem.bias is None
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 7, 7), (1, 2, 2), (1, 3, 3))


def test_published_parameter_counts() -> None:
    """The parameter counts of torchvision's r3d_18 (Kinetics-400), resnet18 and resnet50 (ImageNet)."""
    with torch.device("meta"):
        assert parameters(build_model(Model(name="resnet3d18", temporal_strides=(1, 2, 2, 2)), 400)) == 33_371_472
        assert parameters(build_model(Model(name="resnet2d18"), 1000)) == 11_689_512
        assert parameters(build_model(Model(name="resnet2d50"), 1000)) == 25_557_032


@pytest.mark.parametrize(
    ("strides", "frames"), [((1, 1, 1, 1), [8, 8, 8, 8]), ((1, 2, 2, 2), [8, 4, 2, 1]), ((2, 2, 2, 1), [4, 2, 1, 1])]
)
def test_temporal_strides_keep_or_halve_frames(strides: tuple[int, ...], frames: list[int]) -> None:
    model = build_model(Model(width=4, temporal_strides=strides), 10)  # type: ignore[arg-type]
    shapes = []
    for stage in range(1, 5):
        getattr(model.backbone, f"layer{stage}").register_forward_hook(
            lambda m, i, o: shapes.append(tuple(o.shape[2:]))
        )
    model(clips(frames=8, size=32))
    assert shapes == [(t, s, s) for t, s in zip(frames, (16, 8, 4, 2), strict=True)]


@pytest.mark.parametrize("name", THREE_D)
@pytest.mark.parametrize(("classes", "width"), [(3, 4), (174, 8)])
def test_any_width_and_number_of_classes(name: str, classes: int, width: int) -> None:
    model = build_model(Model(name=name, width=width), classes)
    logits = model(clips(frames=3, size=24))
    assert logits.shape == (2, classes) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_normalized_clips_are_channels_last_3d() -> None:
    raw = clips()
    x = Normalize()(raw)
    assert x.shape == (2, 3, 4, 32, 32) and x.is_contiguous(memory_format=torch.channels_last_3d)
    expected = (raw[1, 2, 3, 4].double() - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(x[1, :, 2, 3, 4].double(), expected, atol=1e-5)


def test_channels_last_does_not_change_logits() -> None:
    model = build_model(Model(width=8), 5).eval()
    raw = clips()
    with torch.inference_mode():
        before = model(raw)
        weight = model.channels_last().backbone.layer1[0].conv1[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.allclose(model(raw), before, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 7, 7), (3, 1, 1), (1, 1, 1)])
def test_bf16_gradients_are_correct_for_every_clip_length(frames: int, kernel: tuple[int, int, int]) -> None:
    """With torch's own Conv3d, the gradients for 2 frames are uninitialized memory on a CPU."""
    torch.manual_seed(0)
    layer = Conv3d(16, 16, kernel, padding=tuple(k // 2 for k in kernel), bias=False)  # type: ignore[arg-type]
    x = torch.randn(4, 16, frames, 8, 8)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    expected, layer.weight.grad = layer.weight.grad, None
    dirt = [torch.full((1 << 16,), float("nan")) for _ in range(16)]
    del dirt
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().square().sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("channels", [4, 6, 8])
@pytest.mark.parametrize("size", [7, 8, 28])
def test_gradients_of_narrow_shortcuts_are_correct(channels: int, size: int) -> None:
    """With torch's own Conv2d, the gradients for fewer than 8 channels are wrong on a CPU."""
    torch.manual_seed(0)
    layer = Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    x = torch.randn(16, channels, size, size).contiguous(memory_format=torch.channels_last)
    exact = torch.nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False).double()
    exact.load_state_dict(layer.state_dict())
    y, expected = layer(x), exact(x.double())
    assert torch.allclose(y.double(), expected, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert layer.weight.grad is not None and exact.weight.grad is not None
    assert (layer.weight.grad - exact.weight.grad).norm() < 1e-4 * exact.weight.grad.norm()


def test_dropout_precedes_the_classifier() -> None:
    model = build_model(Model(width=4, dropout=0.999), 5).train()
    with torch.no_grad():
        model.head.bias.zero_()
        assert (model(clips(size=64)) == 0).float().mean() > 0.5


def test_frame_average_cannot_distinguish_time_reversed_twins(tiny_set: Path) -> None:
    """A frame average cannot distinguish them with any weights, but a 3D network can, even with random weights."""
    twins = json.loads((tiny_set / "twins.json").read_text())
    clip = Clip(frames=4, size=32, center_crop=1.0)

    def load(name: str) -> torch.Tensor:
        path = tiny_set / "videos" / f"{name}.webm"
        info = probe(path)
        wanted = evaluation_request(name, path, info, clip=clip)
        # Centers of segments are symmetric unless one falls between two frames.
        mirrored = info.frames - 1 - wanted.frames[:, ::-1]
        if not np.array_equal(mirrored, wanted.frames):
            pytest.skip("not symmetric")
        return torch.from_numpy(decode_clips(path, wanted, size=32)[0])

    pairs = [(a, b) for a, b in twins.items() if probe(tiny_set / "videos" / f"{a}.webm").frames % 4 != 0][:10]
    pairs = [(a, b) for a, b in pairs if probe(tiny_set / "videos" / f"{a}.webm").frames % 8 != 4]
    first = torch.stack([load(a) for a, _ in pairs])
    second = torch.stack([load(b) for _, b in pairs])
    assert len(pairs) >= 5 and torch.equal(first, second.flip(1))
    torch.manual_seed(0)
    flat = build_model(Model(name="resnet2d18", width=8), 10).eval()
    deep = build_model(Model(name="resnet3d18", width=8), 10).eval()
    with torch.inference_mode():
        assert (flat(first) - flat(second)).abs().max() < 1e-5
        assert (deep(first) - deep(second)).abs().max() > 1e-3


def test_unknown_models_and_unsupported_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'resnet3d18'"):
        build_model(Model(name="resnet3d-18"), 10)
    for name in ("resnet2d18", "resnet2d50-lstm", "r3d_18", "mc3_18", "r2plus1d_18", "c3d", "i3d"):
        with pytest.raises(UsageError, match=f"temporal_strides = .* is not supported by {name}"):
            build_model(Model(name=name, temporal_strides=(1, 2, 2, 2)), 10)


def test_mean_over_views_averages_probabilities_or_logits_and_stays_finite() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    mean = mean_over_views(logits, 2, "probabilities")
    assert torch.allclose(mean.exp(), logits.view(2, 3, 5).softmax(-1).mean(1), atol=1e-6)
    assert mean_over_views(torch.tensor([[400.0, 0.0], [300.0, 0.0]]), 1, "probabilities").isfinite().all()
    assert torch.equal(mean_over_views(logits, 2, "logits"), logits.view(2, 3, 5).mean(1))
    assert mean_over_views(logits, 6, "probabilities") is mean_over_views(logits, 6, "logits") is logits


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_fused_normalization_matches_and_is_channels_last(dtype: torch.dtype | None) -> None:
    normalize, raw = Normalize(), clips()
    plain, fused = normalize(raw), normalize.normalize_fused(raw, dtype)
    assert fused.dtype == (dtype or torch.float32) and fused.stride() == plain.stride()
    torch.testing.assert_close(fused, plain.to(fused.dtype), rtol=2**-7, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_normalization_outputs_the_autocast_dtype(precision: torch.dtype) -> None:
    normalize, raw = Normalize(), clips()
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        made = normalize.cuda()(raw.cuda())
    assert made.dtype == precision and made.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(made.cpu(), Normalize()(raw).to(precision), rtol=2**-7, atol=1e-5)
