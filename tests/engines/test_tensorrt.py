"""TensorRT and TensorRT for RTX, as far as they go without a GPU."""

import shutil
from pathlib import Path

import pytest
import torch

from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.backends import Graph
from ssv2rt.engines.build import build_engine
from ssv2rt.engines.tensorrt import RTX, TENSORRT
from ssv2rt.errors import UserError
from ssv2rt.recipe_files import load_engine_recipe
from ssv2rt.recipes import Engine
from ssv2rt.runs import Run


@pytest.mark.parametrize("name", ["fp16", "int8half"])
def test_nvidias_parser_takes_the_graphs_and_builds_engines_without_a_gpu(
    graphs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    shutil.copy(graphs[name], tmp_path / "model.onnx")
    built = RTX.build(Graph(tmp_path / "model.onnx", None), Engine(targets=("sm80", "sm89")))
    assert built.target == "sm80,sm89"
    assert (tmp_path / built.file).stat().st_size > 1000


def test_what_tensorrt_for_rtx_cannot_build_for_is_named(graphs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UserError, match="does not build for sm90; it does for sm75"):
        RTX.build(Graph(graphs["fp16"], None), Engine(targets=("sm90",)))
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="TensorRT does not take"):
        RTX.build(Graph(tmp_path / "bad.onnx", None), Engine(targets=("sm89",)))


def test_missing_backends_say_what_to_do() -> None:
    if not torch.cuda.is_available():
        assert "tensorrt" in TENSORRT.missing() or "no NVIDIA GPU" in TENSORRT.missing()
        assert RTX.missing()


@pytest.mark.gpu
def test_tensorrt_agrees_with_pytorch_on_a_gpu(tiny_run: Run, tiny_set: Path) -> None:
    if TENSORRT.missing():
        pytest.skip(TENSORRT.missing())
    bundle, failures = build_engine(tiny_run, load_engine_recipe("fp16"), "tensorrt", open_manifest(tiny_set))
    assert not failures and bundle.info.backend == "tensorrt"
