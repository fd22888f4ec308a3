"""Loads state dicts from files or from published URLs. Code in a file is never executed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.run_folders import RUNS, find_run
from ssv2rt.models.pretrained_urls import URLS
from ssv2rt.models.weights import WEIGHTS

Weights = dict[str, torch.Tensor]

_SUFFIXES = (".safetensors", ".pth", ".pt")
_NESTED_KEYS = ("state_dict", "model", "model_state")
"""Keys under which training scripts store the state dict in a checkpoint."""


def read_weights(source: str) -> tuple[Weights, tuple[str, ...] | None]:
    """Reads the tensors of a file, of a run's best checkpoint or of a published network, on the CPU.

    Args:
        source: path of a `.safetensors`, `.pth` or `.pt` file; folder or name of a run; or a name in `URLS`.

    Returns:
        The weights, and the class names in order if the file has them, as those of this package do.

    Raises:
        UsageError: there is no such file, run or network.
        UserError: the weights cannot be downloaded or read, are damaged, or the file does not hold a state dict; or the run
            has no checkpoint yet.
    """
    path = weights_of_run(source) or Path(source)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"'{source}': weights are read from {', '.join(_SUFFIXES)} files; take one of these")
        return _only_tensors(_read(path), source), _labels(path)
    if path.suffix or path.exists() or len(path.parts) != 1:
        problem = "is a folder, and no run" if path.is_dir() else "no such file"
        raise UsageError(
            f"'{source}': {problem}; give a {', '.join(_SUFFIXES)} file, a run, or one of {', '.join(URLS)}"
        )
    if source not in URLS:
        raise UsageError(f"no file, no run and no published network '{source}'{suggest(source, list(URLS))}")
    return _only_tensors(_download(URLS[source]), source), None


def weights_of_run(source: str) -> Path | None:
    """The weights of a run's best checkpoint; None if `source` is a file, a published network or no run."""
    if (
        Path(source).is_file()
        or source in URLS
        or not any((at / "recipe.toml").is_file() for at in (Path(source), RUNS / source))
    ):
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
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(
            f"'{path}': not a file of weights, damaged, or a pickle of more than tensors ({type(error).__name__}); "
            "save only a state_dict, or get it again"
        ) from None


def _download(url: str) -> Any:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, no space, a wrong hash, a damaged file in the cache
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(f"{url} could not be downloaded ({reason}); get it by other means, and give the file") from None


def _only_tensors(stored: Any, source: str) -> Weights:
    """Finds the state dict in a loaded file, and removes the prefix that `DataParallel` adds to names."""
    for key in _NESTED_KEYS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict):
        raise UserError(f"'{source}' holds a {type(stored).__name__}, and no weights by name; save only a state_dict")
    weights = {
        str(name).removeprefix("module."): value
        for name, value in stored.items()
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized
    }
    if not weights:
        raise UserError(f"'{source}' holds no weights by name; save only a state_dict")
    return weights
