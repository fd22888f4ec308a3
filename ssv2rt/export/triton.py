"""Exports an engine as a model of a Triton model repository.

    OUT/NAME/config.pbtxt       what it takes and gives, and how requests are batched
    OUT/NAME/labels.txt         class names, one on each line
    OUT/NAME/1/model.*          the engine's file for TensorRT or OpenVINO, or its graph for ONNX Runtime

Letters: T frames, S size.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssv2rt.core.atomic_files import atomic_folder
from ssv2rt.core.errors import UsageError, UserError, os_errors_as_user_errors
from ssv2rt.core.log import escape
from ssv2rt.engines.bundle import Bundle, BundleInfo
from ssv2rt.engines.export import EMBEDDING, INPUT, OUTPUT
from ssv2rt.engines.onnx_files import read_graph
from ssv2rt.export.onnx_runtime import random_clips, run_graph

logger = logging.getLogger(__name__)

LABELS = "labels.txt"
BACKENDS = ("onnxruntime", "tensorrt", "openvino")
"""Backends of Triton that are written for."""
_OWN_BACKEND = {"tensorrt": "tensorrt", "openvino": "openvino"}
"""For each backend of this package: that of Triton which runs its engines. The others' graphs run by ONNX Runtime."""
_QUEUE_MICROSECONDS = 2000
"""How long the first request of a batch waits for others; a batch of clips takes many times as long."""
_MOST_ROUNDED = 0.05
"""Largest change of the logits, relative to their size, by ONNX Runtime's optimizations."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class _Kind:
    """How Triton runs the model."""

    backend: str
    platform: str
    files: dict[str, Path]
    """By name in the folder of the version."""
    largest_batch: int
    instances: str
    """KIND_CPU, KIND_GPU, or KIND_AUTO."""
    parameters: dict[str, str]
    optimized: bool = True
    """Whether ONNX Runtime's optimizations leave the results as they are."""


def export_triton(
    bundle: Bundle, out: Path, *, name: str | None = None, backend: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the folder OUT/NAME.

    Args:
        bundle: the engine.
        out: the model repository; it is made if it is missing. Other models in it stay.
        name: of the model; by default network and precision.
        backend: one of `BACKENDS`; by default the engine's own, or else onnxruntime.
        overwrite: replace the model of that name.

    Returns:
        Facts to print.

    Raises:
        UsageError: the name or the backend is impossible, or the folder exists.
        UserError: ONNX Runtime does not run the graph, or the folder cannot be written.
    """
    info = bundle.info
    name = name or re.sub(r"[^A-Za-z0-9_.-]", "-", f"{info.model}-{info.precision}").lstrip(".-")
    if not _PLAIN_NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: a model's name has letters, digits, '_', '-' and '.', like resnet3d18-fp16")
    if info.batch.min > 1:
        raise UserError(
            f"{bundle.path} takes batches of {info.batch.min} or more clips, and Triton may send a single one; rebuild it "
            "with batch.min = 1 in the engine recipe"
        )
    folder = out / name
    if folder.exists() and not overwrite:
        raise UsageError(f"--out {out}: '{folder}' exists; choose another --name, or add --overwrite")
    kind = _kind(bundle, backend)
    with (
        os_errors_as_user_errors(f"cannot write '{folder}'", "choose another --out"),
        atomic_folder(folder) as temporary,
    ):
        (temporary / "1").mkdir()
        for file, source in kind.files.items():
            shutil.copyfile(source, temporary / "1" / file)
        (temporary / LABELS).write_text("".join(f"{line}\n" for line in _label_lines(info.labels)), encoding="utf-8")
        (temporary / "config.pbtxt").write_text(_config(name, info, kind), encoding="utf-8")
    return {
        "model": name,
        "backend": kind.backend,
        "needs": "ONNX Runtime" if kind.backend == "onnxruntime" else f"{info.backend} {info.backend_version}",
        "input": f"{INPUT}: uint8 {list(info.input_shape[1:])}",
        "batches": f"1 to {kind.largest_batch}",
        "clip": info.clip.in_words,
    }


def _kind(bundle: Bundle, asked: str | None) -> _Kind:
    info = bundle.info
    own = _OWN_BACKEND.get(info.backend)
    backend = asked or own or "onnxruntime"
    gpu = "KIND_GPU" if info.on_gpu else "KIND_CPU"
    if backend not in (own, "onnxruntime"):
        raise UsageError(
            f"--backend {backend}: '{bundle.path}' is an engine for {info.backend}; leave it out, or take onnxruntime"
        )
    if backend == "tensorrt":
        files = {"model.plan": bundle.engine_file}
        return _Kind(backend, "tensorrt_plan", files, info.batch.max, gpu, {})
    if backend == "openvino":
        files = {"model.xml": bundle.engine_file, "model.bin": bundle.engine_file.with_suffix(".bin")}
        parameters = {
            # The backend compiles the model for the largest batch alone, and refuses smaller ones unless they are padded.
            "ENABLE_BATCH_PADDING": "YES",
            "PERFORMANCE_HINT": "THROUGHPUT" if info.settings.get("hint") == "throughput" else "LATENCY",
        }
        if info.settings.get("arithmetic") == "bf16":
            parameters["HINT_BF16"] = "YES"
        if threads := info.settings.get("threads"):
            parameters["INFERENCE_NUM_THREADS"] = str(threads)
        return _Kind(backend, "", files, info.batch.best, gpu, parameters)
    if own is None:
        logger.info(
            f"Triton does not run engines of {info.backend}: exporting the ONNX graph that this one was built from"
        )
    files = {"model.onnx": bundle.onnx_file}
    return _Kind(backend, "onnxruntime_onnx", files, info.batch.max, "KIND_AUTO", {}, _is_same_optimized(bundle))


def _is_same_optimized(bundle: Bundle) -> bool:
    """Whether ONNX Runtime's optimizations leave the results of the graph as they are, but for rounding.

    Raises:
        UserError: ONNX Runtime does not run the graph, or it gives something else than the configuration declares.
    """
    info, clips = bundle.info, random_clips(bundle.info)
    model = read_graph(bundle.onnx_file)
    exact, fast = (run_graph(model, {INPUT: clips}, optimize=optimize) for optimize in (False, True))
    for name, width in _outputs(info).items():
        found, quick = exact.get(name), fast.get(name)
        if found is None or quick is None or found.shape != (len(clips), width) or found.dtype != np.float32:
            raise UserError(
                f"{bundle.onnx_file} gives no float32 '{name}' of {width} values; rebuild it with `{info.rebuild}`"
            )
        if not np.abs(found - quick).max() <= _MOST_ROUNDED * np.abs(found).max():
            logger.warning(
                f"ONNX Runtime's optimizations change the results of this {info.precision} graph, and are turned off"
            )
            return False
    return True


def _outputs(info: BundleInfo) -> dict[str, int]:
    return {OUTPUT: len(info.labels)} | ({EMBEDDING: info.embedding} if info.embedding else {})


def _label_lines(labels: tuple[str, ...]) -> list[str]:
    """A line for each label: line breaks and other control characters in it are escaped."""
    lines = [escape(label) for label in labels]
    if changed := [line for line, label in zip(lines, labels, strict=True) if line != label]:
        logger.warning(f"{LABELS}: {len(changed)} labels have control characters, now escaped: '{changed[0]}'")
    return lines


def _config(name: str, info: BundleInfo, kind: _Kind) -> str:
    """The text of config.pbtxt, in protobuf's text format."""
    lines = [f'name: "{name}"', f'backend: "{kind.backend}"']
    lines += [f'platform: "{kind.platform}"'] if kind.platform else []
    lines += [f"max_batch_size: {kind.largest_batch}", "input ["]
    lines += [f'  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: {_dims(info.input_shape[1:])} }}', "]", "output ["]
    outputs = []
    for output, width in _outputs(info).items():
        labels = f' label_filename: "{LABELS}"' if output == OUTPUT else ""
        outputs.append(f'  {{ name: "{output}" data_type: TYPE_FP32 dims: {_dims((width,))}{labels} }}')
    lines += [",\n".join(outputs), "]"]
    if kind.largest_batch > 1:
        best = min(info.batch.best, kind.largest_batch)
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: [ {best} ] max_queue_delay_microseconds: {_QUEUE_MICROSECONDS} }}"
        )
    if not kind.optimized:
        lines.append("optimization { graph { level: 2 } }")  # ORT_DISABLE_ALL
    lines.append(f"instance_group [ {{ count: 1 kind: {kind.instances} }} ]")
    for key, value in kind.parameters.items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def _dims(sizes: tuple[Any, ...]) -> str:
    return f"[ {', '.join(map(str, sizes))} ]"
