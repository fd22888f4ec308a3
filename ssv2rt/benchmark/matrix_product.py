"""The arithmetic that a machine reaches in practice: products of large matrices, beside which networks are measured."""

from __future__ import annotations

import torch

from ssv2rt.benchmark.rounds import synchronized_time
from ssv2rt.core.hardware import DTYPES

MATMUL = "matrix product"


class MatrixProduct:
    """Products of two large square matrices.

    Args:
        device: where they are computed.
        precision: 'fp32', 'bf16', 'fp16' or 'int8', of which the sums are int32.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        size, self._repeats = (8192, 20) if device.type == "cuda" else (2048, 4)
        if precision == "int8":
            self._pair = torch.randint(-128, 128, (2, size, size), dtype=torch.int8, device=device)
        else:
            self._pair = torch.randn(2, size, size, device=device).to(DTYPES[precision])
        self._product = torch._int_mm if precision == "int8" else torch.mm
        self.operations = 2 * size**3 * self._repeats
        """Multiplications and additions of one call of `turn`."""

    def turn(self) -> float:
        """Computes the products and returns the seconds taken."""
        a, b = self._pair
        start = synchronized_time(a.device)
        for _ in range(self._repeats):
            self._product(a, b)
        return synchronized_time(a.device) - start
