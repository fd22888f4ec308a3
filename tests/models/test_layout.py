"""Memory format: activations stay channels-last from the clip to the features."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ssv2rt.core.recipes import Model
from ssv2rt.models.registry import build_model, model_names

LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With one thread, PyTorch has another algorithm for some convolutions in fp32, which gives up channels-last."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def settings(name: str) -> Model:
    return Model(name=name, width=8 if name != "c3d" else 4, dropout=0.0)


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim not in LAYOUT or tensor.is_contiguous(memory_format=LAYOUT[tensor.ndim])


@pytest.mark.parametrize("name", [name for name in model_names() if "101" not in name and "34" not in name])
@pytest.mark.parametrize(
    ("precision", "threads"),
    [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 2)],
    indirect=["threads"],
)
def test_all_layers_keep_channels_last(name: str, precision: torch.dtype, threads: int) -> None:
    model = build_model(settings(name), 5).channels_last().train()
    seen: dict[str, tuple[bool, bool]] = {}

    def watch(path: str):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
            out = output if isinstance(output, torch.Tensor) else output[0]  # type: ignore[index]
            seen[path] = (is_channels_last(inputs[0]), is_channels_last(out))

        return look

    for path, module in model.backbone.named_modules():
        if not list(module.children()) and not isinstance(module, (nn.LSTM, nn.GRU, nn.Linear)):
            module.register_forward_hook(watch(path))
    clips = torch.randint(0, 256, (2, 8, 48, 48, 3), dtype=torch.uint8)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = model(clips)
    logits.float().sum().backward()
    assert len(seen) > 10 or name == "c3d"
    assert not {path: how for path, how in seen.items() if how != (True, True)}
    # The weights keep their memory format, so that the optimizer works on contiguous memory.
    for path, weight in model.named_parameters():
        assert is_channels_last(weight), path
