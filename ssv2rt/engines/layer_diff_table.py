"""Writes a layer-by-layer comparison of two graphs as JSON and CSV, and shows its worst layers as a table."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ssv2rt.core.atomic_files import write_json, write_text
from ssv2rt.core.log import printable
from ssv2rt.engines.layer_diff import LayerComparison, LayerError

if TYPE_CHECKING:
    from rich.console import Console

FILES = ("layers-debug.json", "layers-debug.csv")
WIDTH = 110
"""Width of the table, in characters, if the output is not a terminal."""


def write_layers(comparison: LayerComparison, folder: Path) -> None:
    """Writes `layers-debug.json` and `layers-debug.csv` with all layers, in the order of the fp32 graph."""
    rows = [layer.as_dict() for layer in comparison.layers]
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(LayerError)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(layer) for layer in comparison.layers)
    summary = {"clips": comparison.clips, "layers": rows, "unmatched": list(comparison.unmatched)}
    write_json(folder / FILES[0], summary)
    write_text(folder / FILES[1], text.getvalue())


def show_worst(comparison: LayerComparison, count: int = 10, console: Console | None = None) -> None:
    """Prints the layers with the largest relative error, the largest first, to stderr by default."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    worst = comparison.worst(count)
    console = console or Console(stderr=True)
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    title = (
        f"the {len(worst)} layers of {len(comparison.layers)} that differ most from fp32, on {comparison.clips} clips"
    )
    table = Table(box=SIMPLE, show_edge=False, title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for name in ("error", "came in", "SQNR dB", "largest difference", "largest value"):
        table.add_column(name, justify="right")
    for layer in worst:
        table.add_row(
            Text(printable(layer.name)),
            Text(printable(layer.op)),
            f"{layer.relative_error:.2%}" if layer.finite else "not finite",
            f"{layer.inherited_error:.2%}",
            f"{layer.sqnr_db:.1f}",
            f"{layer.largest_difference:.3g}",
            f"{layer.largest_value:.3g}",
        )
    console.print(table)
