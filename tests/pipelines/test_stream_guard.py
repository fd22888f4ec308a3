"""The order in which memory is let go that a GPU still reads."""

import weakref

import pytest
import torch

from ssv2rt.pipelines.stream_guard import StreamGuard


class Memory:
    """Stands for a batch."""


class Point:
    """An event on a stream that has passed when it is said so."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed


def test_a_batch_lives_until_its_event_has_passed_and_goes_in_its_order() -> None:
    held, gone = StreamGuard(), []
    points = [Point() for _ in range(4)]

    def hold(number: int) -> None:
        batch = Memory()
        weakref.finalize(batch, gone.append, number)
        held.until(points[number], batch, "what it was made of")

    hold(0)
    hold(1)
    assert gone == []
    points[1].passed = True
    hold(2)
    assert gone == []  # the GPU passes events in order, whatever is asked first
    points[0].passed = True
    hold(3)
    assert gone == [0, 1]
    points[2].passed = points[3].passed = True
    held.until(points[3], "the next one")
    assert gone == [0, 1, 2, 3]


@pytest.mark.gpu
def test_a_batch_lives_while_the_stream_that_reads_it_sleeps() -> None:
    held, gone, stream = StreamGuard(), [], torch.cuda.current_stream()
    batch = Memory()
    weakref.finalize(batch, gone.append, 0)
    torch.cuda._sleep(2_000_000_000)  # about a second
    held.until(stream.record_event(), batch)
    del batch
    held.until(stream.record_event())
    assert gone == []
    torch.cuda.synchronize()
    held.until(stream.record_event())
    assert gone == [0]
