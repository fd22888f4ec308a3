"""Chooses the GPUs to run an engine on. PyTorch is not imported for an engine built for a CPU."""

from __future__ import annotations

from ssv2rt.core.errors import UsageError
from ssv2rt.engines.bundle import BundleInfo


def devices_for(info: BundleInfo, wanted: str | None) -> list[int | None]:
    """GPU indices, one for each worker; [None] for an engine built for a CPU.

    Args:
        info: the engine.
        wanted: comma-separated GPU indices; None for all GPUs.

    Raises:
        UsageError: `wanted` is malformed, names a GPU that does not exist, or the engine is for a CPU.
    """
    if not info.on_gpu:
        if wanted:
            raise UsageError(f"--devices {wanted}: the engine is for a CPU ({info.target}); leave it out")
        return [None]
    import torch

    here = torch.cuda.device_count()
    if not wanted:
        return list(range(here)) or [0]  # without a GPU, loading the engine reports what is missing
    try:
        numbers = [int(number) for number in wanted.split(",")]
    except ValueError:
        raise UsageError(f"--devices {wanted}: write numbers between commas, like 0,2") from None
    for number in numbers:
        if not 0 <= number < here:
            raise UsageError(f"--devices {wanted}: GPU {number} is not there; there are {here}, counted from 0")
    return list(dict.fromkeys(numbers))
