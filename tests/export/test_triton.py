"""Model repositories for Triton: what config.pbtxt declares, and that the files do it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.engines.bundle import Bundle
from ssv2rt.export.triton import export_triton
from tests.cli import ssv2rt


def config_of(folder: Path) -> Any:
    """A config.pbtxt as Triton's client library reads it."""
    model_config_pb2 = pytest.importorskip("tritonclient.grpc").model_config_pb2
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def as_backend(bundle: Bundle, name: str, file: str, target: str) -> Bundle:
    """The same bundle, as if another backend had built it."""
    info = bundle.info.model_copy(update={"backend": name, "engine_file": file, "target": target})
    return dataclasses.replace(bundle, info=info)


def test_the_graph_gives_what_the_configuration_declares(tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = ssv2rt(
        *("export", tiny_bundle.path, "--to", "triton", "--backend", "onnxruntime", "--out", tmp_path, "--name", "tiny")
    )
    assert done.returncode == 0, done.stderr
    config = config_of(tmp_path / "tiny")
    assert config.name == "tiny" and config.backend == "onnxruntime" and config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == tiny_bundle.info.batch.max
    assert list(config.dynamic_batching.preferred_batch_size) == [tiny_bundle.info.batch.best]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    labels = (tmp_path / "tiny" / config.output[0].label_filename).read_text().splitlines()
    assert labels == list(tiny_bundle.info.labels) and not config.output[1].label_filename
    session = onnxruntime.InferenceSession(tmp_path / "tiny" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {2: np.uint8, 11: np.float32}  # TYPE_UINT8, TYPE_FP32
    (given,) = config.input
    clips = np.zeros((3, *given.dims), types[given.data_type])
    names = [output.name for output in config.output]
    for output, values in zip(config.output, session.run(names, {given.name: clips}), strict=True):
        assert values.shape == (3, *output.dims) and values.dtype == types[output.data_type]


def test_openvino_gets_one_batch_size(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Triton's backend compiles the model for the largest batch, and pads smaller ones if it is told to."""
    import openvino as ov

    export_triton(tiny_bundle, tmp_path)
    (folder,) = tmp_path.iterdir()
    config = config_of(folder)
    assert config.name == folder.name == f"{tiny_bundle.info.model}-fp16" and config.backend == "openvino"
    assert config.max_batch_size == tiny_bundle.info.batch.best
    assert config.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"
    model = ov.Core().read_model(folder / "1" / "model.xml")
    model.inputs[0].get_node().set_layout(ov.Layout("N..."))
    ov.set_batch(model, config.max_batch_size)
    for output, declared in zip(model.outputs, config.output, strict=True):
        assert output.any_name == declared.name and list(output.shape) == [config.max_batch_size, *declared.dims]


def test_a_tensorrt_plan_is_copied(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    (folder / "engine.plan").write_bytes(b"a plan")
    bundle = as_backend(dataclasses.replace(tiny_bundle, path=folder), "tensorrt", "engine.plan", "sm90")
    facts = export_triton(bundle, tmp_path / "out", name="t")
    config = config_of(tmp_path / "out" / "t")
    assert config.platform == "tensorrt_plan" and config.backend == "tensorrt" and config.instance_group[0].kind == 1
    assert (tmp_path / "out" / "t" / "1" / "model.plan").read_bytes() == b"a plan"
    assert facts["needs"] == f"tensorrt {bundle.info.backend_version}"


def test_engines_that_triton_does_not_run_give_their_graph(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = as_backend(tiny_bundle, "aotinductor", "engine.pt2", "cpu")
    with caplog.at_level("INFO", "ssv2rt"):
        assert export_triton(bundle, tmp_path, name="a")["backend"] == "onnxruntime"
    assert [path.name for path in (tmp_path / "a" / "1").iterdir()] == ["model.onnx"]
    with pytest.raises(UsageError, match="engine for aotinductor"):
        export_triton(bundle, tmp_path, name="b", backend="tensorrt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_optimizations_that_change_results_are_turned_off(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most_rounded, level in ((0.05, 0), (-1.0, 2)):  # 2: ORT_DISABLE_ALL
        monkeypatch.setattr("ssv2rt.export.triton._MOST_ROUNDED", most_rounded)
        export_triton(tiny_bundle, tmp_path, name="m", backend="onnxruntime", overwrite=True)
        assert config_of(tmp_path / "m").optimization.graph.level == level


def test_what_is_there_stays_unless_it_may_be_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    call = ("export", tiny_bundle.path, "--to", "triton", "--out", tmp_path, "--name", "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    done = ssv2rt(*call)
    assert done.returncode == 2 and "--overwrite" in done.stderr and (tmp_path / "m" / "mine").exists()
    assert ssv2rt(*call, "--overwrite").returncode == 0
    assert not (tmp_path / "m" / "mine").exists() and {path.name for path in tmp_path.iterdir()} == {"m", "other"}


@pytest.mark.parametrize("name", ["a/b", "..", "ä", "a b"])
def test_names_that_no_model_can_have(tiny_bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        export_triton(tiny_bundle, tmp_path, name=name)
    assert not list(tmp_path.iterdir())


def test_labels_with_line_breaks_stay_one_line(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ("two\nlines", *tiny_bundle.info.labels[1:])
    bundle = dataclasses.replace(tiny_bundle, info=tiny_bundle.info.model_copy(update={"labels": labels}))
    export_triton(bundle, tmp_path, name="m")
    assert (tmp_path / "m" / "labels.txt").read_text().splitlines() == ["two\\nlines", *labels[1:]]
    assert "control characters" in caplog.text


def test_an_engine_of_large_batches_only_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    batch = tiny_bundle.info.batch.model_copy(update={"min": 2})
    bundle = dataclasses.replace(tiny_bundle, info=tiny_bundle.info.model_copy(update={"batch": batch}))
    with pytest.raises(UserError, match=r"batch\.min = 1"):
        export_triton(bundle, tmp_path)
