"""Stochastic depth, activation checkpointing, and a frozen backbone."""

import copy
import weakref

import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Model
from ssv2rt.models.clip_model import ClipModel, freeze_backbone
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import Residual, set_checkpointing, set_drop_path

RESNETS = ["resnet3d18", "resnet3d50", "resnet2d18-lstm", "r2plus1d_18", "mc3_18", "tsm-r50", "slowfast-r50"]


def clips(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


def model_of(name: str = "resnet3d18") -> ClipModel:
    torch.manual_seed(0)
    return build_model(Model(name=name, width=4, dropout=0), 5)


def blocks(model: ClipModel) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def test_drop_path_rate_rises_with_depth_without_new_weights() -> None:
    model = model_of()
    names = list(model.state_dict())
    set_drop_path(model, 0.4)
    assert [block.drop_path for block in blocks(model)] == pytest.approx([0.05 * n for n in range(1, 9)])
    assert list(model.state_dict()) == names
    set_drop_path(model, 0)
    assert not any(block.drop_path for block in blocks(model))


def test_drop_path_skips_whole_samples_and_preserves_the_mean() -> None:
    block = blocks(model_of())[1].train()
    for part in block.modules():  # exclude the noise of batch statistics
        if isinstance(part, torch.nn.BatchNorm3d):
            part.eval()
    block.drop_path = 0.25
    x = torch.rand(1, 4, 2, 8, 8).expand(4000, -1, -1, -1, -1)
    with torch.inference_mode():
        shortcut = torch.relu(x[0])
        block.drop_path = 0.0
        whole = block(x[:1])[0]
        torch.manual_seed(0)
        block.drop_path = 0.25
        y = block(x)
    dropped = (y == shortcut).flatten(1).all(1)
    assert 0.22 < dropped.float().mean() < 0.28
    kept = y[~dropped]
    assert torch.allclose(kept, kept[:1].expand_as(kept), atol=1e-6) and not torch.allclose(kept[0], whole)
    scaled = torch.relu(x[0] + block.conv2(block.conv1(x[:1]))[0] / 0.75)
    assert torch.allclose(kept[0], scaled, atol=1e-5)


@pytest.mark.parametrize("name", RESNETS)
def test_drop_path_affects_only_training(name: str) -> None:
    model = model_of(name)
    other = copy.deepcopy(model)
    set_drop_path(other, 0.9)
    with torch.no_grad():
        assert torch.equal(model.eval()(clips()), other.eval()(clips()))
        assert not torch.allclose(model.train()(clips()), other.train()(clips()))


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_drop_path_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match="less than 1"):
        set_drop_path(model_of(), p)


@pytest.mark.parametrize("name", ["c3d", "i3d"])
def test_networks_without_residual_blocks_are_refused(name: str) -> None:
    model = model_of(name)
    with pytest.raises(UsageError, match="no residual blocks"):
        set_drop_path(model, 0.1)
    with pytest.raises(UsageError, match="no residual blocks"):
        set_checkpointing(model, True)
    set_drop_path(model, 0)
    set_checkpointing(model, False)


@pytest.mark.parametrize(
    ("name", "p", "shared"),
    [*((name, p, False) for name in RESNETS for p in (0.0, 0.5)), ("resnet3d18", 0.0, True)],
)
def test_checkpointing_preserves_gradients_and_running_statistics(name: str, p: float, shared: bool) -> None:
    plain = model_of(name).train()
    set_drop_path(plain, p)
    if shared:  # PyTorch's batch norm for several GPUs: in one process, it works on a CPU, too
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    spared = copy.deepcopy(plain)
    set_checkpointing(spared, True)
    for model in (plain, spared):
        torch.manual_seed(5)
        for _ in range(2):
            model(clips()).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), spared.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5 * float(a.grad.abs().max())), key
    for (key, a), b in zip(plain.named_buffers(), spared.buffers(), strict=True):
        assert torch.equal(a, b), key


def test_checkpointing_frees_activations_inside_blocks() -> None:
    kept = {}
    for on in (False, True):
        model = model_of().train()
        set_checkpointing(model, on)
        alive: list[weakref.ref[torch.Tensor]] = []
        for block in blocks(model):
            block.conv1.register_forward_hook(lambda m, i, o, alive=alive: alive.append(weakref.ref(o)))
        loss = model(clips()).sum()
        kept[on] = sum(1 for reference in alive if reference() is not None)
        del loss
    assert kept == {False: 8, True: 0}


def test_checkpointing_works_with_torch_compile() -> None:
    plain = model_of().train()
    compiled = copy.deepcopy(plain)
    set_checkpointing(compiled, True)
    plain(clips()).square().sum().backward()
    torch.compile(compiled, backend="aot_eager")(clips()).square().sum().backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for (key, a), b in zip(plain.named_buffers(), compiled.buffers(), strict=True):
        assert torch.allclose(a, b), key


@pytest.mark.parametrize("name", ["resnet3d18", "resnet2d18-lstm", "c3d"])
def test_a_frozen_backbone_trains_only_the_classifier(name: str) -> None:
    model = model_of(name).train()
    freeze_backbone(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(clips()).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.weight", "head.bias"}
    assert model.training and model.head.training and not any(m.training for m in model.backbone.modules())
    assert not model.eval().training and not model.eval().head.training
