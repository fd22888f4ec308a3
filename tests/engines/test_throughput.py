"""Speed of engines side by side: all of them work, in turns, and what is not worth its loss is said."""

from collections.abc import Callable

import torch

from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.throughput import clips_per_second, not_faster
from tests.engines.conftest import clips


class Noted(Runner):
    """Writes down what it is asked for."""

    def __init__(self, name: str, in_flight: int, log: list[str]) -> None:
        self.name, self.in_flight, self.log = name, in_flight, log

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        self.log.append(f"{self.name} {len(clips)}")

        def wait() -> Outputs:
            self.log.append(f"{self.name} waited for")
            return Outputs(clips.float().flatten(1), None)

        return wait


def test_engines_take_turns_and_all_batches_are_waited_for() -> None:
    log: list[str] = []
    rates = clips_per_second({"a": Noted("a", 1, log), "b": Noted("b", 2, log)}, clips(3))
    assert list(rates) == ["a", "b"] and all(rate > 0 for rate in rates.values())
    turn = ["a 3", "a waited for", "b 3", "b 3", "b waited for", "b waited for"]
    assert log == turn * (len(log) // len(turn)) and len(log) > 2 * len(turn)


def test_what_is_not_faster_is_said() -> None:
    assert not_faster("int8", {"int8": 20.0, "fp16": 10.0}) == ""
    for rate in (10.0, 9.5):
        said = not_faster("int8", {"int8": rate, "fp16": 10.0})
        assert said == f"int8 is not faster here: {rate:g} clips/s, and 10 in fp16, which loses less; take --fp16"
