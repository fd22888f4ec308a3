"""Prints what was measured before a data set is repacked."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ssv2rt.core.quantities import bytes_in_words, time_in_words
from ssv2rt.repack.choose import ORIGINAL, Measured


def show_measured(measured: Mapping[str, Measured], chosen: str, *, clips: int) -> None:
    """Prints a row for each codec, and which one is taken.

    Args:
        measured: figures by codec, with those of the original.
        chosen: a codec.
        clips: clips of the data set, for bytes and time of all.
    """
    console = Console(highlight=False, markup=False)
    original = measured[ORIGINAL]
    with_run = original.top1 is not None
    table = Table("", box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in (
        "clips/s",
        "ratio",
        "kB/clip",
        "all clips",
        "time",
        "difference",
        *(["top-1"] if with_run else []),
    ):
        table.add_column(heading, justify="right", overflow="fold")
    for name, found in measured.items():
        cells = [
            f"{found.clips_per_second:.1f}",
            f"{found.clips_per_second / original.clips_per_second:.2f}",
            f"{found.bytes / 1000:.1f}",
            bytes_in_words(found.bytes * clips),
            time_in_words(found.seconds * clips) if found.seconds else "-",
            f"{found.difference:.2f}" if name != ORIGINAL else "-",
        ]
        table.add_row(name, *cells, *([f"{found.top1:.1f}"] if with_run else []))
    console.print(table)
    console.print(
        f"chosen: {chosen} (ratio: to the clips/s of the original; time: to repack all clips; difference: mean absolute "
        "difference of pixels after cropping and scaling, of 255)"
    )
