"""Channels-last from the clip to the features: no layer turns a tensor into another layout and back."""

import pytest
import torch
from torch import nn

from ssv2rt.core.recipes import Model
from ssv2rt.models.registry import build_model, model_names

LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def settings(name: str) -> Model:
    return Model(name=name, width=8 if name != "c3d" else 4, dropout=0.0)


def lies_well(tensor: torch.Tensor) -> bool:
    return tensor.ndim not in LAYOUT or tensor.is_contiguous(memory_format=LAYOUT[tensor.ndim])


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_layer_sees_and_makes_channels_last(name: str, precision: torch.dtype) -> None:
    model = build_model(settings(name), 5).channels_last().train()
    seen: dict[str, tuple[bool, bool]] = {}

    def watch(path: str):  # type: ignore[no-untyped-def]
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
            out = output if isinstance(output, torch.Tensor) else output[0]  # type: ignore[index]
            seen[path] = (lies_well(inputs[0]), lies_well(out))

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
    # The weights stay where they are, so the optimiser works on memory in one piece.
    for path, weight in model.named_parameters():
        assert lies_well(weight), path
