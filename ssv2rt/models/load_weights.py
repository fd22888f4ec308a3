"""Loads state dicts from files and runs. Code in a file is never executed."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.run_folders import RUNS, find_run, is_run
from ssv2rt.models.weights import WEIGHTS

Weights = dict[str, torch.Tensor]

_SUFFIXES = (".safetensors", ".pth", ".pt", ".pyth", ".pth.tar")
_NESTED_KEYS = ("state_dict", "model", "model_state")
"""Keys under which training scripts store the state dict in a checkpoint."""


def read_weights(source: str) -> tuple[Weights, tuple[str, ...] | None]:
    """Reads the tensors of a file or of a run's best checkpoint, on the CPU.

    Args:
        source: path of a `.safetensors`, `.pth`, `.pt`, `.pyth` or `.pth.tar` file, or folder or name of a run.

    Returns:
        The weights, without the prefixes `module.` and `model.` of their names, and the class names in order if the file has
        them, as those of this package do.

    Raises:
        UsageError: there is no such file or run.
        UserError: the weights cannot be read, are damaged, or the file does not hold a state dict; or the run has no
            checkpoint yet.
    """
    path = weights_of_run(source) or Path(source)
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise UsageError(f"'{source}': weights are read from {', '.join(_SUFFIXES)} files; take one of these")
        return _only_tensors(_read(path), source), _labels(path)
    problem = "is a folder, and no run" if path.is_dir() else "no such file"
    raise UsageError(f"'{source}': {problem}; give a {', '.join(_SUFFIXES)} file, or a run")


def weights_of_run(source: str) -> Path | None:
    """The weights of a run's best checkpoint; None if `source` is a file or no run."""
    if Path(source).is_file() or not any(is_run(at) for at in (Path(source), RUNS / source)):
        return None
    run = find_run(source)
    path = run.checkpoints / "best" / WEIGHTS
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no 'best' checkpoint yet; let `ssv2rt train` finish an epoch")
    return path


def _labels(path: Path) -> tuple[str, ...] | None:
    """The class names in the header of a weights file; None if it has none."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("labels")
    try:
        labels = None if text is None else json.loads(text)
    except ValueError:
        return None  # a program of another name for what it has there
    return tuple(labels) if isinstance(labels, list) and all(isinstance(name, str) for name in labels) else None


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(200).lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")):
            raise UserError(
                f"'{path}' is a web page, and no weights: the server had an error, or wants a login; download it again"
            )
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # warnings about the pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"'{path}' holds {found[1]} besides tensors, and loading that could run code; save only a state_dict"
            ) from None
        raise UserError(
            f"'{path}': not a file of weights, damaged, or a pickle of more than tensors ({type(error).__name__}); "
            "save only a state_dict, or get it again"
        ) from None


def _numpy_scalars() -> list[Any]:
    """What a pickle of NumPy's numbers needs, as training scripts save the best accuracy. None of it runs code."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # of NumPy 1 and 2
    return [np.dtype, *((scalar, name) for name in names), *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]


def _only_tensors(stored: Any, source: str) -> Weights:
    """Finds the state dict in a loaded file, and removes the prefixes that `DataParallel` and wrappers add to names."""
    for key in _NESTED_KEYS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict):
        raise UserError(f"'{source}' holds a {type(stored).__name__}, and no weights by name; save only a state_dict")
    weights: Weights = {}
    for name, value in stored.items():
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized:
            short = str(name).removeprefix("module.").removeprefix("model.")
            if short in weights:
                raise UserError(f"'{source}' has {short} twice, with and without a prefix; save only one state_dict")
            weights[short] = value
    if not weights:
        raise UserError(f"'{source}' holds no weights by name; save only a state_dict")
    return weights
