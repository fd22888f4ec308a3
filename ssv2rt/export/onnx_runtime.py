"""Runs ONNX graphs by ONNX Runtime, to check what is exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from ssv2rt.engines.bundle import BundleInfo
from ssv2rt.engines.verify import onnxruntime_errors_as_user_errors

TOLERANCE = 1e-5
"""Largest difference of two outputs that count as equal: absolute, and relative to the value."""
_SEED, _CLIPS = 0, 2


def run_graph(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], *, optimize: bool = False
) -> dict[str, np.ndarray]:
    """The outputs of a graph on the CPU, by name.

    Args:
        model: the graph.
        inputs: by name.
        optimize: with ONNX Runtime's own optimizations, which round in other places.

    Raises:
        UserError: ONNX Runtime cannot run the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with onnxruntime_errors_as_user_errors("export an engine of another precision: `ssv2rt build-engine --fp32`"):
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        outputs: list[Any] = session.run(names, inputs)
    return dict(zip(names, outputs, strict=True))


def random_clips(info: BundleInfo) -> np.ndarray:
    """Clips of noise, within the batch range of an engine: uint8 (N, T, S, S, 3)."""
    count = min(max(_CLIPS, info.batch.min), info.batch.max)
    return np.random.default_rng(_SEED).integers(0, 256, (count, *info.input_shape[1:]), np.uint8)


def largest_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """The largest difference between outputs of the same names, divided by the value where that is above 1.

    Infinite if names or shapes differ, or if a value is not finite in one of them alone.
    """
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return float("inf")
    worst = 0.0
    for name, values in first.items():
        one, other = values.astype(np.float64), second[name].astype(np.float64)
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0, np.abs(one - other) / np.maximum(1, np.abs(one)))
        worst = max(worst, float(apart.max(initial=0)) if np.isfinite(apart).all() else float("inf"))
    return worst
