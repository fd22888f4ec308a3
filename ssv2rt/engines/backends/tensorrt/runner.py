"""Runs TensorRT engines, from clips to logits and embedding, on one CUDA stream.

Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ssv2rt.core.errors import UserError
from ssv2rt.engines.backends.tensorrt.build import create_trt_object
from ssv2rt.engines.backends.tensorrt.cuda_graph import CudaGraphRunner, Enqueue, capture
from ssv2rt.engines.backends.tensorrt.log import Log
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.export import EMBEDDING, INPUT, OUTPUT


class TensorRtRunner(Runner):
    """A deserialized engine with its own stream and buffers. Not thread-safe.

    Clips may be on the GPU or on the CPU. Batches of `batch.best` clips are captured as a CUDA graph if the bundle has the
    setting `cuda_graph`.

    Args:
        trt: the module that built the engine.
        bundle: a bundle from `open_bundle`.
        device: the GPU; by default PyTorch's current one.

    Raises:
        UserError: the engine cannot be loaded, or does not match the bundle's description.
    """

    in_flight = 2

    def __init__(self, trt: Any, bundle: Bundle, device: torch.device | None = None) -> None:
        info = bundle.info
        self._log = Log(trt)
        self._device = device or torch.device("cuda", torch.cuda.current_device())
        with torch.cuda.device(self._device):  # TensorRT uses the current device
            self._runtime = create_trt_object(trt.Runtime, self._log)
            # Version-compatible engines contain host code, which is run. A bundle's hashes are checked, but not its origin.
            self._runtime.engine_host_code_allowed = bool(info.settings.get("version_compatible"))
            self._engine = self._runtime.deserialize_cuda_engine(bundle.engine_file.read_bytes())
            if self._engine is None:
                raise UserError(
                    f"{bundle.engine_file} cannot be loaded: {self._log.reason}; rebuild it with `{info.rebuild}`"
                )
            if wrong := _mismatch(trt, self._engine, bundle):
                raise UserError(f"{bundle.engine_file} {wrong}; rebuild it with `{info.rebuild}`")
            capture_batches = bool(info.settings.get("cuda_graph"))
            self._context, captures_itself = _create_context(trt, self._engine, capture_batches)
            if self._context is None:
                raise UserError(
                    f"{bundle.engine_file} does not start: {self._log.reason}; rebuild it with a smaller engine.batch.max"
                )
            # NVTX markers for NVIDIA's profilers would cost time in each call.
            self._context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
            self._stream = torch.cuda.Stream(self._device)
            self._smallest, self._full, largest = info.batch.min, info.batch.best, info.batch.max
            shape = (info.clip.frames, info.clip.size, info.clip.size, 3)
            self._clips = torch.zeros((largest, *shape), dtype=torch.uint8, device=self._device)
            self._results = {
                name: torch.zeros((largest, width), device=self._device) for name, width in _output_widths(info).items()
            }
            for name, buffer in ((INPUT, self._clips), *self._results.items()):
                self._context.set_tensor_address(name, buffer.data_ptr())
            # The buffers were filled on the current stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._enqueue = CudaGraphRunner(
            resize=self._resize,
            run=self._run,
            capture=self._capture,
            full=self._full if capture_batches and not captures_itself else 0,
        )

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Computes the logits of clips.

        Args:
            clips: uint8 (N, T, S, S, 3), N from 1 to the engine's `batch.max`, on the CPU or on the GPU (ready on the
                current stream). A tensor, or an array that supports DLPack.

        Returns:
            float32 (N, K), on the CPU.

        Raises:
            ValueError: the dtype or shape is wrong.
            RuntimeError: TensorRT failed.
        """
        return self.start(clips)().logits

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        """Starts a batch without waiting for the GPU. Returns a function that waits, and returns logits and embedding."""
        clips = self._check_clips(clips)
        with torch.cuda.device(self._device):
            self._compute(clips)
            with torch.cuda.stream(self._stream):
                found = []
                for result in self._results.values():
                    shape = (len(clips), result.shape[1])
                    found.append(
                        torch.empty(shape, pin_memory=self._device.type == "cuda")
                    )  # copies to pageable memory block
                    found[-1].copy_(result[: len(clips)], non_blocking=True)
                done = self._stream.record_event()
        return _PendingBatch(Outputs(found[0], found[1] if len(found) > 1 else None), done, clips)

    def logits_on_gpu(self, clips: torch.Tensor) -> torch.Tensor:
        """Computes logits for further use on the GPU, without waiting and without a copy to the CPU.

        Returns:
            float32 (N, K), on the GPU, ready on the current stream. Later calls do not overwrite it.
        """
        clips = self._check_clips(clips)
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            result = self._results[OUTPUT]
            logits = torch.empty((len(clips), result.shape[1]), device=self._device)
            self._compute(clips)
            with torch.cuda.stream(self._stream):
                logits.copy_(result[: len(clips)], non_blocking=True)
            current.wait_stream(self._stream)
        return logits

    def _compute(self, clips: torch.Tensor) -> None:
        """Enqueues the batch after the work that is already on the current stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._clips[: len(clips)].copy_(clips, non_blocking=True)
            if clips.is_cuda:
                clips.record_stream(self._stream)  # the allocator must not reuse its memory before the copy is done
            # A batch below the engine's minimum is filled up with old clips in the buffer. Their results are not read.
            self._enqueue(max(len(clips), self._smallest))

    def _check_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """The clips as a tensor, of the right dtype and shape. (Copying to the buffer would silently convert others.)"""
        if not isinstance(clips, torch.Tensor):
            clips = torch.from_dlpack(clips)
        largest, *shape = self._clips.shape
        if clips.dtype != torch.uint8 or list(clips.shape[1:]) != shape or not 1 <= len(clips) <= largest:
            taken = ", ".join(str(size) for size in shape)
            raise ValueError(
                f"clips of {clips.dtype} {tuple(clips.shape)}; the engine takes torch.uint8 (N, {taken}), N up to {largest}"
            )
        return clips

    def _resize(self, count: int) -> None:
        if not self._context.set_input_shape(INPUT, (count, *self._clips.shape[1:])):
            raise RuntimeError(f"TensorRT refuses a batch of {count}: {self._log.reason}")

    def _run(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed: {self._log.reason}")

    def _capture(self) -> Enqueue | None:
        return capture(self._run, self._stream, self._results[OUTPUT][: self._full])


class _PendingBatch:
    """A batch in flight. Calling it waits for the batch and returns its outputs."""

    def __init__(self, outputs: Outputs, done: Any, clips: torch.Tensor) -> None:
        self._outputs, self._done = outputs, done
        self._clips: torch.Tensor | None = clips  # keep the clips alive while the GPU reads them

    def __call__(self) -> Outputs:
        self._done.synchronize()
        self._clips = None
        return self._outputs


def _create_context(trt: Any, engine: Any, capture_batches: bool) -> tuple[Any, bool]:
    """Creates an execution context (None on failure), and tells whether it captures CUDA graphs itself.

    TensorRT for RTX compiles kernels for each shape. By default it uses generic kernels until those are ready, so that the
    same clips could give different results. The eager strategy makes it wait instead. Newer versions of TensorRT for RTX
    also capture CUDA graphs themselves.
    """
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(), False
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    captures_itself = hasattr(trt, "CudaGraphStrategy")
    if captures_itself and capture_batches:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config), captures_itself


def _mismatch(trt: Any, engine: Any, bundle: Bundle) -> str:
    """How an engine's inputs and outputs differ from the bundle's description; empty if they match."""
    info = bundle.info
    widths = _output_widths(info)
    names = sorted(engine.get_tensor_name(number) for number in range(engine.num_io_tensors))
    if names != sorted((INPUT, *widths)):
        return f"has the tensors {', '.join(names)}, and not {', '.join((INPUT, *widths))}"
    takes, gives = tuple(engine.get_tensor_shape(INPUT)), [tuple(engine.get_tensor_shape(name)) for name in widths]
    if takes[1:] != tuple(info.input_shape[1:]) or [shape[1:] for shape in gives] != [(n,) for n in widths.values()]:
        return f"takes {takes} and gives {' and '.join(map(str, gives))}, which is not what bundle.json says"
    results = {engine.get_tensor_dtype(name) for name in widths}
    if engine.get_tensor_dtype(INPUT) != trt.uint8 or results != {trt.float32}:
        return "does not take uint8 and give float32"
    smallest, best, largest = [shape[0] for shape in engine.get_tensor_profile_shape(INPUT, 0)]
    if (smallest, largest) != (info.batch.min, info.batch.max):
        return f"takes {smallest} to {largest} clips (best {best}), which is not what bundle.json says"
    return ""


def _output_widths(info: BundleInfo) -> dict[str, int]:
    """The sizes of the outputs by name: K of the logits and, if the engine has that output, D of the embedding."""
    return {OUTPUT: len(info.labels)} | ({EMBEDDING: info.embedding} if info.embedding else {})
