"""Every network as ONNX computes what PyTorch does."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from ssv2rt.engines.export import export_onnx
from ssv2rt.models.registry import build_model, model_names
from ssv2rt.recipes import Clip, Model

KINDS = ("c3d", "r2plus1d_18", "resnet2d18-lstm", "resnet2d18-gru")
"""Those with layers that are hard to export; the rest take minutes."""


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in model_names()]
)
def test_exports_and_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, width=4), 5)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    torch.nn.init.normal_(model.head.weight, std=0.2)
    model.eval()
    export_onnx(model, tmp_path / "m.onnx", clip=Clip(frames=4, size=32), labels=tuple("abcde"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 3):
        clips = torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = model(clips).numpy()
        (logits,) = session.run(None, {"frames": clips.numpy()})
        assert abs(logits - expected).max() < 1e-4 * max(1, abs(expected).max())
