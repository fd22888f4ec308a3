"""Files of weights: what publishers save beside the weights, and what is refused."""

import argparse
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.models.load_weights import read_weights

STATE = {"stem.0.weight": torch.arange(6.0).view(2, 3)}


def saved(path: Path, content: Any, *, zipped: bool = True) -> str:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return str(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pyth", ".pth.tar"])
def test_numbers_of_numpy_beside_the_weights_are_read(suffix: str, zipped: bool, tmp_path: Path) -> None:
    more = {"best": np.float64(61.2), "epoch": np.int64(7), "f32": np.float32(2), "done": np.bool_(True), "cfg": "a: 1"}
    source = saved(tmp_path / f"w{suffix}", {"model_state": STATE, **more}, zipped=zipped)
    weights, labels = read_weights(source)
    assert labels is None and torch.equal(weights["stem.0.weight"], STATE["stem.0.weight"])


@pytest.mark.parametrize("old", [True, False])
def test_numbers_of_both_generations_of_numpy_are_read(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    saved(path, {"state_dict": STATE, "best": np.float64(61.2)}, zipped=False)
    module = re.search(rb"numpy\.(_?)core\.multiarray\n", path.read_bytes())
    assert module is not None
    path.write_bytes(
        path.read_bytes().replace(module[0], b"numpy.core.multiarray\n" if old else b"numpy._core.multiarray\n")
    )
    assert read_weights(str(path))[0].keys() == STATE.keys()


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "w.pth", {prefix + name: weight for name, weight in STATE.items()})
    assert read_weights(source)[0].keys() == STATE.keys()


def test_names_that_differ_only_in_a_prefix_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "w.pth", {**STATE, "model.stem.0.weight": torch.ones(2, 3)})
    with pytest.raises(UserError, match=r"has stem\.0\.weight twice, with and without a prefix"):
        read_weights(source)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (functools.partial(print), "functools.partial"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
    ],
)
def test_anything_else_is_refused_by_its_name(content: object, name: str, zipped: bool, tmp_path: Path) -> None:
    source = saved(tmp_path / "w.pth", {"state_dict": STATE, "args": content}, zipped=zipped)
    with pytest.raises(UserError) as caught:
        read_weights(source)
    text = str(caught.value)
    assert f"holds {name} besides tensors" in text.replace("numpy.core", "numpy._core") and "\n" not in text
    assert np.dtype not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("page", ["<!DOCTYPE html>\n<html><body>404</body>", "\n  <html lang='en'>", "<!doctype HTML>"])
@pytest.mark.parametrize("name", ["w.pth", "w.pyth", "w.safetensors"])
def test_a_web_page_is_recognized(page: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(page)
    with pytest.raises(UserError, match=r"is a web page, and no weights: .*; download it again") as caught:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)
