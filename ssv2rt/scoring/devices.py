"""The GPUs that an engine runs on, found without loading PyTorch where the engine is for a CPU."""

from __future__ import annotations

from ssv2rt.core.errors import UsageError


def devices_for(target: str, wanted: str | None) -> list[int | None]:
    """Numbers of GPUs, one for each worker; [None] for an engine of a CPU.

    Args:
        target: what the engine was built for.
        wanted: numbers between commas; None for all GPUs.

    Raises:
        UsageError: it is not written like that, or a GPU is not there.
    """
    if not target.startswith("sm"):
        if wanted:
            raise UsageError(f"--devices {wanted}: the engine is for a CPU ({target}); leave it out")
        return [None]
    import torch

    here = torch.cuda.device_count()
    if not wanted:
        return list(range(here)) or [0]  # without a GPU the engine says what it lacks
    try:
        numbers = [int(number) for number in wanted.split(",")]
    except ValueError:
        raise UsageError(f"--devices {wanted}: write numbers between commas, like 0,2") from None
    for number in numbers:
        if not 0 <= number < here:
            raise UsageError(f"--devices {wanted}: GPU {number} is not there; there are {here}, counted from 0")
    return list(dict.fromkeys(numbers))
