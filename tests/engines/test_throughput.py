"""Throughput measurement: engines take turns, and a quantized engine that is not faster gives a warning."""

from collections.abc import Callable

import torch

from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.throughput import clips_per_second, slower_than_fp16_warning
from tests.engines.conftest import clips


class Noted(Runner):
    """Logs its calls."""

    def __init__(self, name: str, in_flight: int, log: list[str]) -> None:
        self.name, self.in_flight, self.log = name, in_flight, log

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        self.log.append(f"{self.name} {len(clips)}")

        def wait() -> Outputs:
            self.log.append(f"{self.name} waited for")
            return Outputs(clips.float().flatten(1), None)

        return wait


def test_engines_take_turns_and_all_batches_are_awaited() -> None:
    log: list[str] = []
    rates = clips_per_second({"a": Noted("a", 1, log), "b": Noted("b", 2, log)}, clips(3))
    assert list(rates) == ["a", "b"] and all(rate > 0 for rate in rates.values())
    turn = ["a 3", "a waited for", "b 3", "b 3", "b waited for", "b waited for"]
    assert log == turn * (len(log) // len(turn)) and len(log) > 2 * len(turn)


def test_warning_if_not_faster_than_fp16() -> None:
    assert slower_than_fp16_warning("int8", {"int8": 20.0, "fp16": 10.0}) == ""
    for rate in (10.0, 9.5):
        said = slower_than_fp16_warning("int8", {"int8": rate, "fp16": 10.0})
        assert said == f"int8 is not faster here: {rate:g} clips/s, and 10 in fp16, which loses less; take --fp16"
