"""The TensorRT runner without a GPU, on a fake TensorRT that reads and writes the runner's buffers."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import BatchProfile
from ssv2rt.engines.backends.tensorrt.backend import AMPERE_PLUS, TensorRtBackend
from ssv2rt.engines.backends.tensorrt.cuda_graph import CudaGraphRunner
from ssv2rt.engines.backends.tensorrt.runner import TensorRtRunner
from ssv2rt.engines.bundle import Bundle, BundleInfo
from tests.engines.conftest import CLIP, LABELS, clips

BATCH = BatchProfile(min=2, best=4, max=6)


def bundle_of(folder: Path, **changes: Any) -> Bundle:
    """A bundle description for the fake engine."""
    facts: dict[str, Any] = {
        "backend": "tensorrt",
        "backend_version": "10.8.0",
        "precision": "fp16",
        "target": "sm90",
        "model": "resnet3d18",
        "input": "frames",
        "input_shape": ("batch", CLIP.frames, CLIP.size, CLIP.size, 3),
        "batch": BATCH,
        "clip": CLIP,
        "labels": LABELS,
        "weights_sha256": "",
        "files": {},
        "embedding": 7,
        "onnx_file": "model.onnx",
        "engine_file": "engine.plan",
        "settings": {"cuda_graph": True},
        "rebuild": "ssv2rt build-engine tiny --fp16",
    }
    return Bundle(folder, BundleInfo(**(facts | changes)))


class Calls(list[str]):
    """The calls that a `CudaGraphRunner` makes, in order."""

    def graph_runner(self, full: int, capturable: bool = True) -> CudaGraphRunner:
        def capture() -> Callable[[], None] | None:
            self.append("capture")
            return (lambda: self.append("replay")) if capturable else None

        return CudaGraphRunner(
            resize=lambda count: self.append(f"resize {count}"),
            run=lambda: self.append("run"),
            capture=capture,
            full=full,
        )


def test_full_batches_are_run_then_captured_then_replayed() -> None:
    calls = Calls()
    enqueue = calls.graph_runner(full=4)
    for count in (4, 4, 4, 4):
        enqueue(count)
    assert calls == ["resize 4", "run", "capture", "replay", "replay"]


def test_cuda_graph_is_dropped_when_the_batch_size_changes() -> None:
    calls = Calls()
    enqueue = calls.graph_runner(full=4)
    for count in (4, 4, 4, 3, 3, 4, 4, 4):
        enqueue(count)
    assert calls == [
        "resize 4",
        "run",
        "capture",
        "replay",
        "resize 3",
        "run",
        "run",
        "resize 4",
        "run",
        "capture",
        "replay",
    ]


def test_failed_capture_is_not_retried() -> None:
    calls = Calls()
    enqueue = calls.graph_runner(full=4, capturable=False)
    for count in (4, 4, 4, 2, 4, 4):
        enqueue(count)
    assert calls == ["resize 4", "run", "capture", "run", "resize 2", "run", "resize 4", "run", "run"]
    calls.clear()
    enqueue = calls.graph_runner(full=0)
    for count in (4, 4):
        enqueue(count)
    assert calls == ["resize 4", "run", "run"]


def test_resize_is_repeated_after_a_failed_run() -> None:
    calls = Calls()
    failures = [True]

    def run() -> None:
        calls.append("run")
        if failures:
            failures.pop()
            raise RuntimeError("once")

    enqueue = CudaGraphRunner(
        resize=lambda count: calls.append(f"resize {count}"), run=run, capture=lambda: None, full=0
    )
    with pytest.raises(RuntimeError, match="once"):
        enqueue(4)
    enqueue(4)
    assert calls == ["resize 4", "run", "resize 4", "run"]


SHAPES = {"frames": (-1, 4, 32, 32, 3), "logits": (-1, 5), "embedding": (-1, 7)}


class FakeTensorRt:
    """Stands in for TensorRT and a GPU. Logit k of its engine is the mean of the clip plus k, and feature k is the mean
    minus k.

    Args:
        capture: what a CUDA graph capture does: 'works', 'fails' or 'is empty'.
    """

    def __init__(self, capture: str = "works") -> None:
        self.capture = capture
        self.log: list[str] = []
        self.captured: list[Callable[[], None]] | None = None
        self.engine: Any = SimpleNamespace(
            num_io_tensors=3,
            get_tensor_name=lambda number: ("frames", "logits", "embedding")[number],
            get_tensor_shape=SHAPES.get,
            get_tensor_dtype=lambda name: "uint8" if name == "frames" else "float32",
            get_tensor_profile_shape=lambda name, number: [(size, 4, 32, 32, 3) for size in (2, 4, 6)],
            create_execution_context=lambda *config: self,
        )
        self.addresses: dict[str, int] = {}
        self.count = 0
        self.failing = False

    def trt(self) -> Any:
        class ILogger:
            ERROR = 1

        runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: self.engine)
        verbosity = SimpleNamespace(NONE="none")
        return SimpleNamespace(
            ILogger=ILogger,
            Runtime=lambda logger: runtime,
            ProfilingVerbosity=verbosity,
            uint8="uint8",
            float32="float32",
        )

    # The execution context.
    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.count = shape[0]
        self.log.append(f"resize {self.count}")
        return 2 <= self.count <= 6

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        if self.failing:
            return False
        if self.captured is not None:
            self.log.append("capture")
            self.captured.append(self.compute)
        else:
            self.log.append("run")
            self.compute()
        return True

    def compute(self) -> None:
        pixels = np.ctypeslib.as_array(
            (ctypes.c_uint8 * (self.count * 4 * 32 * 32 * 3)).from_address(self.addresses["frames"])
        )
        means = pixels.reshape(self.count, -1).mean(1)[:, None]
        for name, values in (("logits", means + np.arange(5)), ("embedding", means - np.arange(7))):
            if name in self.addresses:
                result = (ctypes.c_float * values.size).from_address(self.addresses[name])
                np.ctypeslib.as_array(result)[:] = values.ravel()

    # PyTorch's side.
    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Stream:
            cuda_stream = 7

            def __init__(self, device: torch.device | None = None) -> None: ...

            def wait_stream(self, other: "Stream") -> None: ...

            def record_event(self) -> Any:
                return SimpleNamespace(synchronize=lambda: fake.log.append("wait"))

        class CUDAGraph:
            def __init__(self) -> None:
                self.work: list[Callable[[], None]] = []

            def replay(self) -> None:
                fake.log.append("replay")
                for work in self.work:
                    work()

        @contextlib.contextmanager
        def capture(graph: CUDAGraph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            fake.captured = graph.work
            yield
            fake.captured = None
            if fake.capture == "fails":
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            if fake.capture == "is empty":
                graph.work.clear()

        changes = {
            "device": lambda device: contextlib.nullcontext(),
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device: Stream(),
            "Stream": Stream,
            "CUDAGraph": CUDAGraph,
            "graph": capture,
        }
        for name, value in changes.items():
            monkeypatch.setattr(torch.cuda, name, value)


def runner_on(fake: FakeTensorRt, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> TensorRtRunner:
    fake.install(monkeypatch)
    (folder / "engine.plan").write_bytes(b"plan")
    return TensorRtRunner(fake.trt(), bundle_of(folder, **changes), torch.device("cpu"))


def expected(batch: torch.Tensor) -> torch.Tensor:
    return batch.float().flatten(1).mean(1)[:, None] + torch.arange(5)


@pytest.mark.parametrize("capture", ["works", "fails", "is empty"])
def test_every_batch_gets_its_own_logits_with_and_without_cuda_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTensorRt(capture)
    runner = runner_on(fake, tmp_path, monkeypatch)
    for seed, count in enumerate((4, 4, 4, 6, 1, 4, 4, 4)):
        torch.testing.assert_close(runner(clips(count, seed)), expected(clips(count, seed)))
    again = ["run", "capture", "replay"]  # the replay is compared with a normal run
    steps = [step for step in fake.log if step != "wait"]
    if capture == "works":
        assert steps[:6] == ["resize 4", "run", *again, "replay"]
        assert steps[6:] == ["resize 6", "run", "resize 2", "run", "resize 4", "run", *again, "replay"]
        assert not capsys.readouterr().err
    else:
        assert steps.count("capture") == 1 and steps[-3:] == ["run"] * 3
        reason = "operation not permitted" if capture == "fails" else "its replay gives other results"
        assert f"no CUDA graph was captured ({reason}" in capsys.readouterr().err


def test_no_capture_unless_the_bundle_enables_cuda_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRt()
    runner = runner_on(fake, tmp_path, monkeypatch, settings={})
    for _ in range(3):
        runner(clips(4))
    assert "capture" not in fake.log


def test_several_batches_can_be_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRt()
    runner = runner_on(fake, tmp_path, monkeypatch)
    assert runner.in_flight == 2
    pending = [runner.start(clips(4, seed)) for seed in range(4)]
    assert "wait" not in fake.log
    for seed, outputs in enumerate(pending):
        for _ in range(2):
            torch.testing.assert_close(outputs().logits, expected(clips(4, seed)))
            means = clips(4, seed).float().flatten(1).mean(1)[:, None]
            torch.testing.assert_close(outputs().embedding, means - torch.arange(7))


def test_engine_without_embedding_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRt()
    fake.engine.num_io_tensors = 2
    runner = runner_on(fake, tmp_path, monkeypatch, embedding=0)
    outputs = runner.start(clips(4))()
    torch.testing.assert_close(outputs.logits, expected(clips(4)))
    assert outputs.embedding is None


def test_logits_on_gpu_are_not_overwritten_and_dlpack_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt()
    runner = runner_on(fake, tmp_path, monkeypatch)
    first = runner.logits_on_gpu(clips(4, 1))
    array: Any = clips(3, 2).numpy()  # has __dlpack__
    second = runner.logits_on_gpu(array)
    torch.testing.assert_close(first, expected(clips(4, 1)))
    torch.testing.assert_close(second, expected(clips(3, 2)))
    assert "wait" not in fake.log


@pytest.mark.parametrize(
    "wrong", [clips(7), clips(4)[:0], clips(4).float(), clips(4)[:, :1], clips(4)[:, :, :1, :1], torch.zeros(4)]
)
def test_clips_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: torch.Tensor
) -> None:
    runner = runner_on(FakeTensorRt(), tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"the engine takes torch.uint8 \(N, 4, 32, 32, 3\), N up to 6"):
        runner(wrong)


def test_tensorrt_failures_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRt()
    runner = runner_on(fake, tmp_path, monkeypatch)
    fake.failing = True
    with pytest.raises(RuntimeError, match="TensorRT failed: it gave no reason"):
        runner(clips(4))
    fake.failing = False
    torch.testing.assert_close(runner(clips(4)), expected(clips(4)))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "get_tensor_name",
            lambda number: ("frames", "scores", "embedding")[number],
            "has the tensors embedding, frames, scores, and not frames, logits, embedding",
        ),
        ("num_io_tensors", 2, "has the tensors frames, logits, and not frames, logits, embedding"),
        ("get_tensor_shape", (SHAPES | {"frames": (-1, 8, 32, 32, 3)}).get, "takes (-1, 8, 32, 32, 3)"),
        ("get_tensor_shape", (SHAPES | {"embedding": (-1, 8)}).get, "and gives (-1, 5) and (-1, 8), which is not"),
        ("get_tensor_dtype", lambda name: "float16", "does not take uint8 and give float32"),
        ("get_tensor_profile_shape", lambda *_: [(n, 4, 32, 32, 3) for n in (1, 4, 9)], "takes 1 to 9 clips"),
        ("create_execution_context", lambda *_: None, "does not start: it gave no reason"),
    ],
)
def test_engines_that_do_not_match_the_bundle_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, value: Any, message: str
) -> None:
    fake = FakeTensorRt()
    setattr(fake.engine, part, value)
    with pytest.raises(UserError) as caught:
        runner_on(fake, tmp_path, monkeypatch)
    assert message in str(caught.value) and "; rebuild it with" in str(caught.value)
    fake.engine = None
    with pytest.raises(
        UserError, match="cannot be loaded: it gave no reason; rebuild it with `ssv2rt build-engine tiny"
    ):
        runner_on(fake, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"backend_version": "10.7.1"}, "was built by tensorrt 10.7.1, and 10.8.0 is installed"),
        ({"backend_version": "10.7.1", "settings": {"version_compatible": True}}, ""),
        ({"backend_version": "10.10.0", "settings": {"version_compatible": True}}, "10.10.0, and 10.8.0 is older"),
        ({"target": "sm89"}, "was built for sm89, and this machine has sm90"),
        ({"target": AMPERE_PLUS}, ""),
    ],
)
def test_bundles_of_other_versions_and_gpus_are_incompatible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    backend = TensorRtBackend("tensorrt", "tensorrt")
    monkeypatch.setattr(backend, "version", lambda: "10.8.0")
    monkeypatch.setattr(backend, "target", lambda: "sm90")
    found = backend.incompatible_reason(bundle_of(tmp_path, **changes).info)
    assert found.endswith(reason) and bool(found) == bool(reason)
