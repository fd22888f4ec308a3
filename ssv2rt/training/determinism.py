"""Deterministic algorithms: PyTorch's settings, and a clear error where a layer has none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from ssv2rt.core.errors import UserError

_CUBLAS, _WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""The variable with which cuBLAS is deterministic, and a value that PyTorch accepts."""
NO_CUDNN_ENGINE = "unable to find an engine"
"""Part of cuDNN's error message where no algorithm can be used, such as for want of memory."""


def set_deterministic(on: bool) -> None:
    """Allows only deterministic algorithms, or lets PyTorch and cuDNN choose the fastest ones."""
    if on:
        os.environ.setdefault(_CUBLAS, _WORKSPACE)
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


@contextlib.contextmanager
def explain_determinism_errors(model: str) -> Iterator[None]:
    """Turns PyTorch's long error about a missing deterministic algorithm into one line.

    Args:
        model: name of the network, for the message.

    Raises:
        UserError: in place of PyTorch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled():
            raise
        if NO_CUDNN_ENGINE in str(error):  # PyTorch leaves out the engines that are not deterministic
            raise UserError(
                f"train.deterministic = true: cuDNN has no deterministic algorithm for a convolution of {model} in this "
                f"precision, or too little memory for it; set another train.precision, lower train.batch_size, or leave "
                f"train.deterministic out"
            ) from None
        if "deterministic" not in str(error):
            raise
        if _CUBLAS in str(error):  # PyTorch reads it once, when it first multiplies matrices on a GPU
            raise UserError(
                f"train.deterministic = true: this process has used the GPU before, when {_CUBLAS} was not set; train in a "
                f"new process, or set {_CUBLAS}={_WORKSPACE} before it starts"
            ) from None
        layer = str(error).split()[0]
        raise UserError(
            f"train.deterministic = true: '{layer}', which {model} needs, has no deterministic algorithm on this device; "
            f"use another network, such as resnet3d18, or leave train.deterministic out"
        ) from None
