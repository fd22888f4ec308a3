"""Reads the layers of an engine from TensorRT's engine inspector or build log, and counts convolutions by precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ssv2rt.core.atomic_files import write_json
from ssv2rt.engines.backends.tensorrt.log import LAYERS_MESSAGE

LAYERS_FILE = "layers.json"

Layer = dict[str, Any] | str
"""A layer in the format of the engine inspector: Name, LayerType, Inputs and Outputs with "Format/Datatype"; or only the
name, if the engine was built without detailed profiling verbosity."""

_PRECISIONS = {
    r"\bint8\b": "INT8",
    r"\b(fp8|float8\w*)\b": "FP8",
    r"\b(bf16|bfloat16)\b": "BF16",
    r"\b(half|fp16|float16)\b": "FP16",
    r"\b(float|fp32|float32)\b": "FP32",
}
"""The names of datatypes in different TensorRT versions, which appear alone or in 'Channel major FP16 format'."""

_TENSOR = re.compile(r"\{ Name: (.*?), (?:Location: \w+, )?Dimensions: \[(.*?)\],.*?Datatype: ([^,}]*[^,} ])")
_GROUP = re.compile(r", (Inputs|Constants|Outputs): \[")


def inspect(trt: Any, engine: Any) -> list[Layer]:
    """The layers of a deserialized engine; empty if there is no engine inspector.

    Args:
        engine: an `ICudaEngine`.
    """
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return []
    return layers_in_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layers_in_json(text: str) -> list[Layer]:
    """The layers in the JSON of the engine inspector; empty if the JSON has an unexpected form."""
    try:
        content = json.loads(text, strict=False)  # metadata contains control characters
    except (ValueError, RecursionError):
        return []
    layers = content.get("Layers") if isinstance(content, dict) else None
    return [layer for layer in layers if isinstance(layer, (dict, str))] if isinstance(layers, list) else []


def layers_in_log(message: str) -> list[Layer]:
    """The layers in the builder's log, converted to the format of the engine inspector.

    Args:
        message: log message that begins with 'Layers:' and has one layer in each line, such as `Name: conv1, LayerType:
            correlation, Inputs: [ { Name: x, Dimensions: [-1,8], Datatype: Int8, ... }], Outputs: [ ... ], ...`.
    """
    found: list[Layer] = []
    for line in message.removeprefix(LAYERS_MESSAGE).splitlines():
        head, *groups = _GROUP.split(line)
        name, comma, kind = head.removeprefix("Name: ").rpartition(", LayerType: ")
        if line.startswith("Name: ") and comma:
            tensors = {title: _tensors(text) for title, text in zip(groups[::2], groups[1::2], strict=True)}
            found.append({"Name": name, "LayerType": kind, **tensors})
    return found


def convolution_counts(layers: list[Layer]) -> dict[str, dict[str, int]]:
    """The number of convolutions by precision, such as {"convolutions": {"INT8": 19, "FP16": 1}}.

    The precision is the datatype of a convolution's first input. Empty if there are no layers with details.
    """
    inputs = [layer.get("Inputs") for layer in layers if isinstance(layer, dict) and _is_convolution(layer)]
    first = (tensors[0] if isinstance(tensors, list) and tensors else None for tensors in inputs)
    counts = Counter(_precision(tensor) if isinstance(tensor, dict) else "unknown" for tensor in first)
    return {"convolutions": dict(counts.most_common())} if counts else {}


def write_layers(folder: Path, layers: list[Layer], source: str) -> str:
    """Writes `layers.json` and returns its name.

    Args:
        source: where the list comes from: 'engine inspector' or 'builder'.
    """
    write_json(folder / LAYERS_FILE, {"source": source, "Layers": layers})
    return LAYERS_FILE


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {"Name": name, "Dimensions": [int(size) for size in sizes.split(",") if size], "Format/Datatype": kind}
        for name, sizes, kind in _TENSOR.findall(text)
    ]


def _is_convolution(layer: dict[str, Any]) -> bool:
    """Whether a layer is a convolution, under any of the names that TensorRT's two compilers use."""
    kind = str(layer.get("LayerType", "")).lower()
    if kind == "gemm":  # both a 1x1x1 convolution and the classifier may become a GEMM
        return "conv" in f"{layer.get('Name')} {layer.get('Metadata')}".lower()
    return kind == "correlation" or ("conv" in kind and "deconv" not in kind)


def _precision(tensor: dict[str, Any]) -> str:
    datatype = str(tensor.get("Format/Datatype") or tensor.get("Datatype", "")).lower()
    return next((name for pattern, name in _PRECISIONS.items() if re.search(pattern, datatype)), "unknown")
