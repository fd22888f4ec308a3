"""The same bits every time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from ssv2rt.core.errors import UserError


def set_deterministic(on: bool) -> None:
    """Takes only algorithms that give the same bits every time, or whichever are fastest."""
    if on:  # wanted before the first use of a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


@contextlib.contextmanager
def plain_errors(model: str) -> Iterator[None]:
    """Says in one line that a layer has no deterministic algorithm, where PyTorch has many.

    Raises:
        UserError: in place of PyTorch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled() or "deterministic" not in str(error):
            raise
        layer = str(error).split()[0]
        raise UserError(
            f"train.deterministic = true: '{layer}', which {model} needs, has no deterministic algorithm on this device; "
            f"take a network without it, such as resnet3d18, or leave the setting out"
        ) from None
