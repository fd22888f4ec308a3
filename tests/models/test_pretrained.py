"""Pretrained weights: file formats, inflation, weights that do not fit, and unusable files."""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.recipes import Model, Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.clip_model import KINETICS_MEAN, KINETICS_STD, ClipModel, Normalize
from ssv2rt.models.pretrained import How, inflate, initialize_from
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained, save_weights
from tests.models.reference import State, features_2d, features_video, random_state, shapes_2d, shapes_video

WIDTH = 8


def model_of(name: str, classes: int = 5, width: int = WIDTH) -> ClipModel:
    return build_model(Model(name=name, width=width), classes).eval()


def resnet18(classes: int = 10) -> State:
    return random_state(shapes_2d(WIDTH, (2, 2, 2, 2), bottleneck=False, classes=classes))


def resnet50() -> State:
    return random_state(shapes_2d(WIDTH, (3, 4, 6, 3), bottleneck=True, classes=10))


def saved(state: object, path: Path) -> str:
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5 * max(1, b.abs().max()))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_2d_network_reproduces_the_features_of_its_weights_file(tmp_path: Path, suffix: str) -> None:
    for name, state in (("resnet2d18", resnet18()), ("resnet2d50", resnet50())):
        model = model_of(name)
        report = initialize_from(model, saved(state, tmp_path / f"w{suffix}"))
        assert not report.inflated and report.missing == ("head.weight", "head.bias")
        assert {skipped for skipped, _ in report.skipped} == {"head.weight", "head.bias"}
        x = torch.randn(2, 3, 1, 40, 40)
        with torch.inference_mode():
            assert close(model.backbone(x), features_2d(state, x[:, :, 0]))


@pytest.mark.parametrize("head", ["-lstm", "-gru", "-latefusion"])
def test_recurrent_network_loads_2d_resnet_weights(tmp_path: Path, head: str) -> None:
    state, model = resnet18(), model_of(f"resnet2d18{head}")
    report = initialize_from(model, saved(state, tmp_path / "w.pth"))
    assert all(name.startswith(("head.", "backbone.recurrent.", "backbone.fusion.")) for name in report.missing)
    x = torch.randn(2, 3, 3, 32, 32)
    with torch.inference_mode():
        assert close(model.backbone.frame_features(x)[:, 1], features_2d(state, x[:, :, 1]))


@pytest.mark.parametrize("name", ["resnet3d18-pool", "resnet3d50-pool"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_repeated_frame_has_its_2d_features_after_centre_inflation(tmp_path: Path, name: str, frames: int) -> None:
    state = resnet18() if "18" in name else resnet50()
    model = model_of(name)
    report = initialize_from(model, saved(state, tmp_path / "w.pth"), how="centre")
    assert report.missing == ("head.weight", "head.bias") and "backbone.stem.0.weight" in report.inflated
    frame = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        features = model.backbone(frame.unsqueeze(2).repeat(1, 1, frames, 1, 1))
        assert close(features, features_2d(state, frame))


def test_mean_inflation_matches_2d_features_away_from_the_ends(tmp_path: Path) -> None:
    state = resnet18()
    model = model_of("resnet3d18-pool")
    initialize_from(model, saved(state, tmp_path / "w.pth"))
    reach = 1 + 2 * 8  # one frame for each temporal convolution
    frame = torch.randn(1, 3, 32, 32)
    kept = []
    model.backbone.layer4.register_forward_hook(lambda m, i, o: kept.append(o.mean((3, 4))))
    with torch.inference_mode():
        model.backbone(frame.unsqueeze(2).repeat(1, 1, 2 * reach + 1, 1, 1))
        expected = features_2d(state, frame)
        assert close(kept[0][:, :, reach], expected) and not close(kept[0][:, :, 0], expected)


def test_inflate_kernels() -> None:
    kernel = torch.randn(4, 3, 3, 3)
    assert torch.equal(inflate(kernel, 3, "centre")[:, :, 1], kernel)
    assert inflate(kernel, 3, "centre").count_nonzero() == kernel.count_nonzero()
    assert torch.allclose(inflate(kernel, 3, "mean").sum(2), kernel, atol=1e-6)
    assert torch.equal(inflate(kernel, 1, "mean"), inflate(kernel, 1, "centre"))


def test_report_mentions_a_missing_stem_pool(tmp_path: Path) -> None:
    path = saved(resnet18(), tmp_path / "w.pth")
    assert "resnet3d18-pool" in str(initialize_from(model_of("resnet3d18"), path))
    assert "pool" not in str(initialize_from(model_of("resnet3d18-pool"), path))
    assert initialize_from(model_of("mc3_18"), path).inflated
    inflated = {name: inflate(weight, 3, "mean") if weight.ndim == 4 else weight for name, weight in resnet50().items()}
    for name, weight in inflated.items():  # the layout of IBM's 3D networks
        inflated[name] = weight[:, :, :1] if weight.ndim == 5 and weight.shape[-1] == 1 else weight
    path = saved(inflated, tmp_path / "ibm.pth")
    assert "the pool after the stem is in the network of the file" in str(initialize_from(model_of("resnet3d50"), path))
    assert "the pool" not in str(initialize_from(model_of("resnet3d50-pool"), path))


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_video_network_reproduces_the_features_of_its_weights_file(tmp_path: Path, name: str) -> None:
    state = random_state(shapes_video(name, width=16, classes=5))
    model = model_of(name, width=16)
    report = initialize_from(model, saved(state, tmp_path / "w.pth"))
    assert not report.missing and not report.skipped and not report.inflated
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    x = clips.permute(0, 4, 1, 2, 3).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (KINETICS_MEAN, KINETICS_STD))
    features = features_video(name, state, (x - mean) / std)
    with torch.inference_mode():
        assert close(model(clips), features @ state["fc.weight"].T + state["fc.bias"])
    assert torch.equal(model.head.weight, state["fc.weight"])


def test_imagenet_weights_keep_imagenet_normalization(tmp_path: Path) -> None:
    model = model_of("resnet3d18-pool")
    initialize_from(model, saved(resnet18(), tmp_path / "w.pth"))
    assert torch.equal(model.normalise.mean, Normalize().mean)


def test_initialize_from_weights_of_another_run(tmp_path: Path) -> None:
    first = model_of("resnet3d18")
    path = saved(first.state_dict(), tmp_path / "weights.safetensors")
    same, other = model_of("resnet3d18"), model_of("resnet3d18", classes=7)
    assert not initialize_from(same, path).missing
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), first.state_dict().values(), strict=True))
    report = initialize_from(other, path)
    assert set(report.skipped) == {("head.weight", "is 5x64, here 7x64"), ("head.bias", "is 5, here 7")}
    assert report.missing == ("head.weight", "head.bias")
    flat = saved(model_of("resnet2d18").state_dict(), tmp_path / "flat.safetensors")
    assert initialize_from(model_of("resnet3d18-pool"), flat).inflated


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_is_found_in_training_checkpoints(tmp_path: Path, nest: str, prefix: str) -> None:
    state = {prefix + name: value for name, value in resnet18().items()}
    path = saved({nest: state, "epoch": 7, "arch": "resnet18"}, tmp_path / "w.pth")
    assert initialize_from(model_of("resnet2d18"), path).missing == ("head.weight", "head.bias")


def test_half_precision_weights_are_converted_to_fp32_and_model_layout(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet18().items()}
    model = model_of("resnet3d18-pool").channels_last()
    initialize_from(model, saved(state, tmp_path / "w.pth"))
    weight = model.backbone.layer1[0].conv1[0].weight
    assert weight.dtype == torch.float32 and weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_load_report_is_one_line(tmp_path: Path) -> None:
    report = initialize_from(model_of("resnet3d18-pool"), saved(resnet18(), tmp_path / "w.pth"))
    text = str(report)
    assert re.fullmatch(
        r".*w\.pth: 100 weights loaded, 20 inflated from 2D to 3D; 2 skipped \(head.weight is 10x64, here 5x64, "
        r"head.bias is 10, here 5\); 2 start fresh \(head.weight, head.bias\)",
        text,
    ), text


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("c3d", 8, "has 0% of this network's weights, and 50% are needed: backbone.stem.0.weight is not in this model"),
        ("resnet2d18", 4, "backbone.stem.0.weight is 8x3x7x7, here 4x3x7x7"),
        ("r2plus1d_18", 8, "backbone.stem.0.weight is 8x3x7x7, here 6x3x1x7x7"),
        ("resnet3d101", 4, "50% are needed"),
    ],
)
def test_weights_of_another_network_are_refused_without_changes(
    tmp_path: Path, name: str, width: int, message: str
) -> None:
    model = model_of(name, width=width)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialize_from(model, saved(resnet18(), tmp_path / "w.pth"))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("kind", ["text", "empty", "noise", "truncated", "code", "zipped code", "list", "no tensors"])
def test_malicious_and_damaged_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    whole = Path(saved(resnet18(), tmp_path / f"whole{path.suffix}")).read_bytes()
    if kind in ("zipped code", "list", "no tensors"):
        torch.save({"zipped code": {"conv1.weight": Code()}, "list": [1, 2]}.get(kind, {"epoch": 7}), path)
    else:
        content = {
            "text": b"conv1.weight = 7\n",
            "empty": b"",
            "noise": os.urandom(5000),
            "truncated": whole[: len(whole) * 2 // 3],
            "code": pickle.dumps({"conv1.weight": Code()}),
        }
        path.write_bytes(content[kind])
    with pytest.raises(UserError) as caught:
        initialize_from(model_of("resnet2d18", width=4), str(path))
    assert "\n" not in str(caught.value) and name in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "ran").exists()


def test_other_unusable_files_are_refused(tmp_path: Path) -> None:
    state = resnet18()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    model = model_of("resnet2d18")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.0\.weight holds values that are not finite"):
        initialize_from(model, saved(state, tmp_path / "w.pth"))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(UserError, match="is no ResNet: it has blocks.0.attn.qkv.weight;"):
        initialize_from(model, saved({"blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "vit.pth"))
    (tmp_path / "w.txt").write_text("x")
    for source, message in (
        (str(tmp_path / "w.txt"), "read from .safetensors, .pth, .pt, .pyth, .pth.tar files"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "gone.pth"), "no such file"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            initialize_from(model, source)
        assert "\n" not in str(caught.value)
    how: How = "center"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="did you mean 'centre'"):
        initialize_from(model, "resnet18", how=how)


@pytest.fixture
def named(tmp_path: Path) -> tuple[ClipModel, str]:
    """A network of the classes a to e, and its weights file."""
    torch.manual_seed(3)
    model = model_of("resnet3d18")
    path = tmp_path / "named.safetensors"
    save_weights(path, model, labels=("a", "b", "c", "d", "e"), recipe=Recipe(), epoch=1)
    return model, str(path)


def test_classifier_is_permuted_to_the_order_of_the_classes(named: tuple[ClipModel, str]) -> None:
    first, path = named
    labels = ("d", "a", "e", "c", "b")
    other = model_of("resnet3d18")
    report = initialize_from(other, path, labels=labels)
    assert "5 of 5 classes are taken over by name" in str(report) and not report.missing
    clips = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        ours, theirs = other.eval()(clips), first.eval()(clips)
    order = [3, 0, 4, 2, 1]
    assert torch.equal(other.head.weight, first.head.weight[order]) and torch.equal(
        other.head.bias, first.head.bias[order]
    )
    assert close(ours, theirs[:, order])  # a matrix product rounds by the place of a column


def test_equal_classes_are_taken_over_and_others_start_fresh(named: tuple[ClipModel, str]) -> None:
    first, path = named
    labels = ("x1", "c", "x2", "e ", "C", "x3", "a")
    other = model_of("resnet3d18", classes=7)
    fresh = other.head.weight.detach().clone(), other.head.bias.detach().clone()
    text = str(initialize_from(other, path, labels=labels))
    assert (
        "3 of 7 classes are taken over by name, and the rest start fresh: 'x1', 'x2', 'C' (did you mean 'c'?) and 1"
        in text
    )
    assert "class names of the data that differ from those of" in text and "\n" not in text
    for mine, theirs, before in (
        (other.head.weight, first.head.weight, fresh[0]),
        (other.head.bias, first.head.bias, fresh[1]),
    ):
        assert torch.equal(mine[[1, 3, 6]], theirs[[2, 4, 0]])
        assert torch.equal(mine[[0, 2, 4, 5]], before[[0, 2, 4, 5]])


def test_a_classifier_of_other_classes_starts_fresh(named: tuple[ClipModel, str]) -> None:
    other = model_of("resnet3d18")
    before = other.head.weight.detach().clone()
    report = initialize_from(other, named[1], labels=("v", "w", "x", "y", "z"))
    assert torch.equal(other.head.weight, before) and report.missing == ("head.weight", "head.bias")
    assert "it has none of the 5 classes" in str(report)


def test_classes_without_names_are_taken_over_in_order_and_said(named: tuple[ClipModel, str], tmp_path: Path) -> None:
    first, _ = named
    path = saved(first.state_dict(), tmp_path / "w.pth")
    other = model_of("resnet3d18")
    report = initialize_from(other, path, labels=("v", "w", "x", "y", "z"))
    assert torch.equal(other.head.weight, first.head.weight)
    assert "it does not name its classes, so its 5 are taken over in its order" in str(report)


def test_weights_of_a_run_are_its_best_checkpoint(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(tiny_run)
    monkeypatch.chdir(tiny_run.path.parents[1])
    for source in (str(tiny_run.path), tiny_run.name):
        model = build_model(trained.recipe.model, 10)
        report = initialize_from(model, source, labels=trained.labels)
        assert not report.missing and torch.equal(model.head.weight, trained.model.head.weight)
    (tmp_path / "empty").mkdir()
    shutil.copy(tiny_run.recipe_file, tmp_path / "empty")
    with pytest.raises(UserError, match="has no 'best' checkpoint yet"):
        initialize_from(model, str(tmp_path / "empty"))
