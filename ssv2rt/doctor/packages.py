"""Whether the packages that ssv2rt needs can be imported. This module needs none of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

ESSENTIAL = ("numpy", "torch", "av", "pyarrow", "pydantic", "onnx", "rich")
"""Packages without which `ssv2rt doctor` cannot go on."""
OTHERS = ("onnxruntime", "onnxscript", "openvino", "matplotlib", "torchmetrics", "safetensors", "fsspec", "tomlkit")
"""Further packages that commands import."""


def broken_packages(names: tuple[str, ...]) -> Iterator[str]:
    """For each package that cannot be imported, a sentence that says why, and how to install it."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = name if error.name is None else error.name.partition(".")[0]
            needed = "" if missing == name else f", which {name} needs,"
            yield f"{missing}{needed} is not installed; pip install {missing}"
        except Exception as error:  # modules raise anything: of a missing library, or another version of NumPy
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            yield f"{name} cannot be imported ({reason}); pip install --force-reinstall {name}"
