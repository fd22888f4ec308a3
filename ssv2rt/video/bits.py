"""Reading the headers of coded pictures bit by bit."""

from __future__ import annotations

Buffer = bytes | memoryview


class Bits:
    """Bits of some bytes, the highest of each byte first. Behind their end there are zeros.

    Args:
        data: the bytes.
    """

    def __init__(self, data: Buffer) -> None:
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        ahead = self._bits >> self._left if self._left >= 0 else self._bits << -self._left
        return ahead & (1 << count) - 1

    def flag(self) -> bool:
        """The next bit."""
        return bool(self.take(1))

    def unsigned(self) -> int:
        """An Exp-Golomb number, ue(v) of ITU-T H.264, section 9.1. One of more than 32 bits is damage, and gives 0."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                return 0
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """The same with a sign, se(v)."""
        number = self.unsigned()
        return -(number // 2) if number % 2 == 0 else (number + 1) // 2
