"""Amounts in words."""

import pytest

from ssv2rt.core.quantities import bytes_in_words, clock, time_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (12_345_678, "12 MB"),
        (1.4e9, "1.4 GB"),
        (2e13, "20000 GB"),
    ],
)
def test_bytes(count: float, words: str) -> None:
    assert bytes_in_words(count) == words


@pytest.mark.parametrize(
    ("seconds", "words", "on_a_clock"),
    [
        (0.2, "under a second", "0:00"),
        (1, "1 second", "0:01"),
        (89, "89 seconds", "1:29"),
        (90, "1.5 minutes", "1:30"),
        (5399, "90.0 minutes", "1:29:59"),
        (7200, "2.0 hours", "2:00:00"),
    ],
)
def test_time(seconds: float, words: str, on_a_clock: str) -> None:
    assert (time_in_words(seconds), clock(seconds)) == (words, on_a_clock)
