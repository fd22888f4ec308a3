"""Amounts of bytes and of time, in words for people."""

from __future__ import annotations


def bytes_in_words(count: float) -> str:
    """Bytes in a unit that fits: "830 kB", "12 MB", "1.4 GB".

    Args:
        count: at least 0.
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB" if count >= 999.5 else f"{count:.0f} bytes"


def time_in_words(seconds: float) -> str:
    """A length of time in a unit that fits: "under a second", "12 seconds", "3.5 minutes", "2.1 hours"."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"{seconds:.0f} second{'' if round(seconds) == 1 else 's'}"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{hours:.1f} hours"


def clock(seconds: float) -> str:
    """A length of time as on a clock: "0:07", "12:30", "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
