"""Weights files: the same for the same weights, readable like other files, and read back as written."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ssv2rt.core.recipes import Model, Recipe
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import save_weights


def test_equal_weights_give_equal_files_that_are_read_back(tmp_path: Path) -> None:
    model = build_model(Model(width=4), 3)
    path, contents = tmp_path / "weights.safetensors", set()
    for _ in range(8):  # safetensors chooses the order of its metadata anew each time
        save_weights(path, model, labels=("a", "b", "\u00e7"), recipe=Recipe(), epoch=7)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    weights, expected = load_file(path), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
