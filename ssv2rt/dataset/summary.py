"""Summarizes a data set's manifest, as a dictionary or as printed tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssv2rt.core.log import printable
from ssv2rt.core.quantities import bytes_in_words, time_in_words
from ssv2rt.dataset.listing import SPLITS
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.quarantine import quarantine, quarantine_file
from ssv2rt.video.container import OK


def summarize(manifest: Manifest, path: Path) -> dict[str, Any]:
    """Counts and ranges of a manifest. `path` is the manifest's file."""
    table = manifest.table
    good = table.filter(pc.equal(table["status"], OK))
    odd = quarantine(manifest)
    return {
        "manifest": str(path),
        "quarantine": str(quarantine_file(path)),
        "classes": len(manifest.labels),
        "splits": {split: _split(table.filter(pc.equal(table["split"], split))) for split in SPLITS},
        "unusable": _counts(table.filter(pc.not_equal(table["status"], OK))["status"]),
        "suspicious": pc.sum(pc.equal(odd["status"], "suspicious")).as_py() or 0,
        "codecs": _counts(good["codec"]),
        "sizes": dict(
            list(_counts(pc.binary_join_element_wise(_text(good["width"]), _text(good["height"]), "x")).items())[:5]
        ),
        "frames": _range(good["frames"]),
        "rate": _range(good["rate"]),
        "variable_rate": int(pc.sum(pc.is_valid(good["times"])).as_py() or 0),
        "turned": int(pc.sum(pc.not_equal(good["rotation"], 0)).as_py() or 0),
        "hours": round((pc.sum(good["duration"]).as_py() or 0) / 3600, 2),
        "gigabytes": round((pc.sum(good["bytes"]).as_py() or 0) / 1e9, 2),
        "seconds": round(pc.sum(good["duration"]).as_py() or 0, 1),
        "bytes": pc.sum(good["bytes"]).as_py() or 0,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Prints a summary as two tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=SIMPLE, show_edge=False)
    for column in ("split", "clips", "usable", "classes"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, counts in summary["splits"].items():
        if counts["clips"]:
            table.add_row(split, *(f"{counts[name]:,}" for name in ("clips", "usable", "classes")))
    console.print(table)
    lines = _lines(summary)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(printable(f" {name:{width}}  {value}"))


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    def format_counts(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"

    def format_range(values: list[float]) -> str:
        return f"{values[0]:g} to {values[2]:g}, median {values[1]:g}" if values else "-"

    lines = [
        ("codecs", format_counts(summary["codecs"])),
        ("sizes", format_counts(summary["sizes"])),
        ("frames", format_range(summary["frames"])),
        ("frames per second", format_range(summary["rate"])),
        ("length", f"{time_in_words(summary['seconds'])}, {bytes_in_words(summary['bytes'])}"),
    ]
    lines += [("uneven frame rate", f"{summary['variable_rate']:,}")] if summary["variable_rate"] else []
    lines += [("rotated", f"{summary['turned']:,}")] if summary["turned"] else []
    lines += [
        ("unusable", format_counts(summary["unusable"])),
        ("suspicious", f"{summary['suspicious']:,}" if summary["suspicious"] else "none"),
        ("manifest", summary["manifest"]),
    ]
    if summary["unusable"] or summary["suspicious"]:
        lines.append(("what is wrong", summary["quarantine"]))
    return lines


def _split(rows: pa.Table) -> dict[str, int]:
    good = rows.filter(pc.equal(rows["status"], OK))
    labels = good["label"].to_numpy()
    return {"clips": len(rows), "usable": len(good), "classes": len(np.unique(labels[labels >= 0]))}


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, most frequent first."""
    counts = {str(entry["values"]): int(entry["counts"]) for entry in pc.value_counts(column).to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _range(column: pa.ChunkedArray) -> list[float]:
    """Minimum, median and maximum; empty for an empty column."""
    values = column.to_numpy()
    return [round(float(v), 2) for v in (values.min(), np.median(values), values.max())] if len(values) else []


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())
