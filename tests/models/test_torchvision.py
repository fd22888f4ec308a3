"""torchvision's video networks: weight names, shapes, parameter counts and features match the published ones."""

import pytest
import torch
from torch import nn

from ssv2rt.core.recipes import Model
from ssv2rt.models.registry import build_model
from tests.models.reference import features_video, random_state, shapes_video

SIZES = {"r3d_18": 33_371_472, "mc3_18": 11_695_440, "r2plus1d_18": 31_505_325}


@pytest.mark.parametrize("name", SIZES)
def test_every_weight_has_the_published_name_and_shape(name: str) -> None:
    with torch.device("meta"):
        model = build_model(Model(name=name), 400)
    ours = {k.removeprefix("backbone."): v.shape for k, v in model.state_dict().items() if "normalise" not in k}
    assert {k.replace("head.", "fc."): shape for k, shape in ours.items()} == shapes_video(name)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("r3d_18", "layer2.0.downsample.0.weight", (128, 64, 1, 1, 1)),
        ("r3d_18", "layer4.1.conv2.0.weight", (512, 512, 3, 3, 3)),
        ("mc3_18", "layer1.0.conv1.0.weight", (64, 64, 3, 3, 3)),
        ("mc3_18", "layer2.0.conv1.0.weight", (128, 64, 1, 3, 3)),
        ("r2plus1d_18", "stem.0.weight", (45, 3, 1, 7, 7)),
        ("r2plus1d_18", "layer1.0.conv1.0.0.weight", (144, 64, 1, 3, 3)),
        ("r2plus1d_18", "layer2.0.conv1.0.3.weight", (128, 230, 3, 1, 1)),
        ("r2plus1d_18", "layer4.0.conv2.0.0.weight", (921, 512, 1, 3, 3)),
    ],
)
def test_well_known_weight_shapes(name: str, key: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert build_model(Model(name=name), 400).backbone.state_dict()[key].shape == shape


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("frames", "size"), [(8, 32), (5, 23)])
def test_features_match_the_reference_implementation(name: str, frames: int, size: int) -> None:
    state = random_state(shapes_video(name, width=64 if name == "r3d_18" else 16))
    model = build_model(Model(name=name, width=64 if name == "r3d_18" else 16), 400).eval()
    model.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=True)
    x = torch.randn(2, 3, frames, size, size)
    with torch.inference_mode():
        expected = features_video(name, state, x)
        assert (model.backbone(x) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


def test_resnet3d18_with_published_strides_equals_r3d_18() -> None:
    r3d = build_model(Model(name="r3d_18", width=4), 5).eval()
    ours = build_model(Model(name="resnet3d18", width=4, temporal_strides=(1, 2, 2, 2)), 5).eval()
    ours.load_state_dict(r3d.state_dict(), strict=True)
    clips = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(ours(clips), r3d(clips))


def test_mc3_preserves_the_number_of_frames() -> None:
    model = build_model(Model(name="mc3_18", width=4), 5)
    shapes = []
    model.backbone.layer4.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    model(torch.zeros(2, 7, 32, 32, 3, dtype=torch.uint8))
    assert shapes == [(2, 32, 7, 2, 2)]


def test_factorized_convolutions_index_as_a_flat_sequence() -> None:
    part = build_model(Model(name="r2plus1d_18", width=4), 5).backbone.layer1[0].conv1
    kinds = [nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.Conv3d, nn.BatchNorm3d, nn.ReLU]
    assert len(part) == 6 and all(isinstance(part[number], kind) for number, kind in enumerate(kinds))
    part[4] = nn.Identity()
    assert (
        isinstance(part[4], nn.Identity) and "1.weight" not in part.state_dict() and "0.1.weight" in part.state_dict()
    )
