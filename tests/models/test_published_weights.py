"""Weights of published networks: the same logits as in the publisher's network, all weights or none, and clear refusals."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.layouts import to_model_names
from ssv2rt.models.load_weights import read_weights
from ssv2rt.models.pretrained import initialize_from
from ssv2rt.models.published_weights import load_published
from ssv2rt.models.registry import build_model
from tests.models.publishers import Published, ibm, slow, slowfast, torchvision_video, tsm
from tests.models.reference import random_state, shapes_2d

Make = Callable[[int, int], Published]
NETWORKS: dict[str, tuple[Make, int, int, int]] = {
    "ibm-r50": (lambda width, classes: ibm("50", width, classes), 4, 32, 256),
    "ibm-r101": (lambda width, classes: ibm("101", width, classes), 4, 32, 256),
    "tsm-r50": (lambda width, classes: tsm("50", width, classes), 8, 8, 256),
    "tsm-r101": (lambda width, classes: tsm("101", width, classes), 8, 8, 256),
    "tsm-r50-mmaction2": (lambda width, classes: tsm("50", width, classes, by="mmaction2"), 8, 16, 224),
    "slow-r50": (slow, 8, 8, 256),
    "slow-r50-pysf": (lambda width, classes: slow(width, classes, prefix="model."), 8, 8, 256),
    "slowfast-r50": (slowfast, 32, 32, 256),
    "r3d_18": (lambda width, classes: torchvision_video("r3d_18", width, classes), 8, 16, 112),
    "mc3_18": (lambda width, classes: torchvision_video("mc3_18", width, classes), 8, 16, 112),
    "r2plus1d_18": (lambda width, classes: torchvision_video("r2plus1d_18", width, classes), 16, 16, 112),
}
"""Each with the smallest width at which all of its parts are there, and with the frames and pixels of published clips."""
FAST = [name for name in NETWORKS if name != "ibm-r101"]
OTHER_NAMES = ("tsm-r50-mmaction2", "slow-r50-pysf")
"""Networks that are there under other names, too."""
EXACT = 1e-4
"""Of the standard deviation of the logits."""


def clips(count: int, frames: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8, generator=generator)


def error(model: ClipModel, batch: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((model(batch) - expected).abs().max() / expected.std())


def imported(network: Published, folder: Path) -> ClipModel:
    source = network.save(folder)
    model = network.ours()
    load_published(model, read_weights(source)[0], source)
    return model


@pytest.mark.parametrize("name", FAST)
def test_a_narrow_network_has_the_logits_of_its_publisher_on_published_clips(name: str, tmp_path: Path) -> None:
    make, width, frames, size = NETWORKS[name]
    network = make(width, 7)
    batch = clips(1, frames, size)
    assert error(imported(network, tmp_path), batch, network.expected(batch)) < EXACT


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, 300) for name in FAST),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in NETWORKS if name not in OTHER_NAMES),
    ],
)
def test_exchanging_any_two_tensors_of_equal_shape_changes_the_logits(name: str, step: int, tmp_path: Path) -> None:
    """They are exchanged in the network, which is the same as in the file, since names decide where each goes."""
    make, width, *_ = NETWORKS[name]
    network = make(width, 7)
    batch = clips(1, 4, 40)
    model, expected = imported(network, tmp_path), network.expected(batch)
    assert error(model, batch, expected) < EXACT
    renamed, targets = to_model_names(network.state, name), model.state_dict()
    groups: dict[tuple[int, ...], list[str]] = {}
    for ours in renamed.original:
        if targets[ours].ndim:
            groups.setdefault(tuple(targets[ours].shape), []).append(ours)
    pairs = [pair for names in groups.values() for pair in itertools.combinations(names, 2) if not added(*pair)]
    assert len(pairs) > 500

    def check(found: float, first: str, second: str) -> None:
        # Not a number where a bias, which may be negative, became a variance.
        assert not found < EXACT, (renamed.original[first], renamed.original[second])

    for first, second in (pair for pair in pairs[::step] if targets[pair[0]].ndim > 1):
        a, b = targets[first], targets[second]
        kept = a.clone()
        a.copy_(b), b.copy_(kept)
        check(error(model, batch, expected), first, second)
        b.copy_(a), a.copy_(kept)
    of_norms = [pair for pair in pairs[::step] if targets[pair[0]].ndim == 1]
    with torch.inference_mode():
        for start in range(0, len(of_norms), 100):
            part = of_norms[start : start + 100]
            logits = with_exchanged_norms(model, batch, part)
            assert (logits[-1] - expected).abs().max() < EXACT * expected.std()
            for pair, row in zip(part, logits, strict=False):
                check(float((row - expected).abs().max() / expected.std()), *pair)
    one, two = (renamed.original[ours] for ours in pairs[-1])
    network.state |= {one: network.state[two], two: network.state[one]}
    check(error(imported(network, tmp_path), batch, expected), *pairs[-1])


def with_exchanged_norms(model: ClipModel, clip: torch.Tensor, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Logits of a clip for each pair of tensors of batch norms that are exchanged, and for none, in one pass."""
    weights, changed = model.state_dict(), {}
    for row, pair in enumerate(pairs):
        for name, other in (pair, pair[::-1]):
            changed.setdefault(name, weights[name].repeat(len(pairs) + 1, 1))[row] = weights[other]

    def exchanged(norm: str, x: torch.Tensor) -> torch.Tensor:
        parts = [f"{norm}.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (changed.get(part, weights[part]).view(-1, x.shape[1], 1, 1, 1) for part in parts)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    norms = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm3d)}
    for name, norm in norms.items():
        norm.forward = functools.partial(exchanged, name)  # type: ignore[method-assign]
    logits = model(clip.expand(len(pairs) + 1, *clip.shape[1:]))
    for norm in norms.values():
        del norm.forward
    return logits


def added(first: str, second: str) -> bool:
    """Whether two weights are the biases of the last batch norms of a block's main path and of its shortcut.

    These are added to each other, so that exchanging them does not change the network.
    """
    return any(
        path.endswith((".conv2.1.bias", ".conv3.1.bias")) and shortcut == f"{path.rsplit('.', 3)[0]}.downsample.1.bias"
        for path, shortcut in ((first, second), (second, first))
    )


@pytest.mark.parametrize("name", FAST)
def test_initialization_takes_every_layout(name: str, tmp_path: Path) -> None:
    make, width, *_ = NETWORKS[name]
    network = make(width, 7)
    model, batch = network.ours(), clips(2, 4, 40)
    report = initialize_from(model, network.save(tmp_path))
    assert not report.missing and not report.skipped
    assert error(model, batch, network.expected(batch)) < EXACT


def refusal(model: ClipModel, network: Published, folder: Path) -> str:
    source = network.save(folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_published(model, read_weights(source)[0], source)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    text = str(caught.value)
    assert "\n" not in text and source in text and len(text) < 600
    return text


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    model = build_model(Model(name="resnet3d50-pool", width=4), 174)
    text = refusal(model, ibm("50", 4, 400), tmp_path)
    assert text.endswith("(layout: ResNet) is not this network: it has 400 classes, and the network 174")


def test_a_deeper_network_is_refused(tmp_path: Path) -> None:
    text = refusal(build_model(Model(name="tsm-r50", width=8), 7), tsm("101", 8, 7), tmp_path)
    assert "255 of its weights have no place (base_model.layer3.6.conv1.net.weight" in text
    text = refusal(build_model(Model(name="tsm-r101", width=8), 7), tsm("50", 8, 7), tmp_path)
    assert "weights are not in it (backbone.layer3.6.conv1.0.weight" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("layer2.1.bn2.running_var"),
            "1 weights are not in it (backbone.layer2.1.conv2.1.running_var)",
        ),
        (lambda w: w.pop("fc.bias"), "1 weights are not in it (head.bias)"),
        (
            lambda w: w.update({"layer1.0.se.weight": torch.ones(3)}),
            "1 of its weights have no place (layer1.0.se.weight)",
        ),
        (lambda w: w.update({"bn1.bias": torch.ones(5)}), "bn1.bias is 5, here 4"),
        (lambda w: w.update({"bn1.bias": torch.ones(4).long()}), "bn1.bias is 4"),
        (
            lambda w: w["layer3.2.bn1.weight"].fill_(float("nan")),
            "layer3.2.bn1.weight holds values that are not finite",
        ),
        (lambda w: w.update({"conv1.weight": torch.ones(4, 3, 7, 7, 7)}), "kenshohara's 3D-ResNets-PyTorch: its stem"),
    ],
)
def test_files_that_differ_in_one_weight_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path
) -> None:
    network = ibm("50", 4, 7)
    change(network.state)
    assert message in refusal(network.ours(), network, tmp_path)


def test_counters_of_batch_norms_do_not_matter(tmp_path: Path) -> None:
    network = ibm("50", 4, 7)
    network.state = {name: weight for name, weight in network.state.items() if not name.endswith("tracked")}
    batch = clips(1, 4, 40)
    assert error(imported(network, tmp_path), batch, network.expected(batch)) < EXACT


def test_temporal_shifts_of_file_and_network_must_agree(tmp_path: Path) -> None:
    flat = random_state(shapes_2d(8, (3, 4, 6, 3), bottleneck=True, classes=7))
    model = build_model(Model(name="tsm-r50", width=8), 7)
    with pytest.raises(UserError, match="it shifts 0 layers over time, and the network 16"):
        load_published(model, flat, "resnet50.pth")
    shifted = tsm("50", 8, 7)
    text = refusal(build_model(Model(name="resnet2d50", width=8), 7), shifted, tmp_path)
    assert "it shifts 16 layers over time, and the network 0" in text
    report = initialize_from(build_model(Model(name="resnet2d50", width=8), 7), shifted.save(tmp_path))
    assert report.skipped == (
        ("the temporal shift", "is in the network of the file, but here only in tsm-r50 and tsm-r101"),
    )


def test_2d_kernels_are_not_taken_for_3d_kernels() -> None:
    flat = random_state(shapes_2d(4, (3, 4, 6, 3), bottleneck=True, classes=7))
    with pytest.raises(UserError, match="17 weights have another shape .conv1.weight is 4x3x7x7, here 4x3x3x7x7"):
        load_published(build_model(Model(name="resnet3d50-pool", width=4), 7), flat, "resnet50.pth")


def test_own_weights_keep_their_colors() -> None:
    first, second = (build_model(Model(name="resnet3d18", width=4), 7) for _ in range(2))
    first.normalise.set_colors((1.0, 2.0, 3.0), (4.0, 5.0, 8.0))
    load_published(second, first.state_dict(), "weights.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert second.normalise.scale.flatten().tolist() == pytest.approx([1 / 4, 1 / 5, 1 / 8])
    incomplete = {name: weight for name, weight in first.state_dict().items() if "normalise" not in name}
    with pytest.raises(UserError, match="2 weights are not in it .normalise.mean, normalise.scale"):
        load_published(second, incomplete, "weights.safetensors")


def test_a_weight_that_is_there_twice_is_refused() -> None:
    network = tsm("50", 8, 7)
    network.state["base_model.fc.bias"] = torch.ones(7)
    with pytest.raises(UserError, match=r"new_fc.bias and base_model.fc.bias are the same weight"):
        load_published(network.ours(), network.state, "weights.pth")
