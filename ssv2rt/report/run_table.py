"""What runs there are: one row for each, from the files in its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UserError
from ssv2rt.core.log import printable
from ssv2rt.core.run_folders import RUNS, Run, known_runs
from ssv2rt.training.metrics_log import read_metrics


@dataclass(frozen=True)
class RunRow:
    """One run. Fields are keys of `ssv2rt runs --json`."""

    name: str
    network: str
    """Empty in a folder that only has engines of an ONNX file, or if its recipe cannot be read."""
    data: str
    """Path of the data set, or "synthetic"."""
    epochs: int
    """Complete epochs."""
    planned_epochs: int
    """0 in an imported run, which was not trained here."""
    top1: float | None
    """Validation top-1 in percent of the best checkpoint; None before the first epoch is complete."""
    engines: tuple[str, ...]
    when: float
    """Seconds since 1970: when it was last trained; of a folder that only has engines, when they were built."""
    latest: bool
    """Whether commands take it where no run is named."""


def list_runs(root: Path = RUNS) -> list[RunRow]:
    """The runs in a folder, the newest first."""
    latest = (root / "latest").resolve().name
    rows = [_row(Run(root / name), name == latest) for name in known_runs(root, for_engine=True)]
    return sorted(rows, key=lambda row: (-row.when, row.name))


def _row(run: Run, latest: bool) -> RunRow:
    network, data, planned = "", "", 0
    if run.recipe_file.is_file():
        try:
            recipe = run.recipe()
            network = recipe.model.name
            planned = 0 if run.source_file.is_file() else recipe.train.epochs
            data = "synthetic" if recipe.data.synthetic else recipe.data.root
        except UserError:  # of another version, or damaged; commands that use the run say so
            network = "?"
    done = {line["epoch"]: line["validation"] for line in read_metrics(run.metrics_file) if "validation" in line}
    top1 = done.get(run.best_epoch, {}).get("top1")
    bundles = sorted(file.parent.name for file in run.engines.glob("*/bundle.json"))
    return RunRow(
        name=run.name,
        network=network,
        data=data,
        epochs=int(max(done, default=0)),
        planned_epochs=planned,
        top1=top1,
        engines=tuple(name for name in bundles if not name.startswith(".") and not name.endswith(".failed")),
        when=_when(run),
        latest=latest,
    )


def _when(run: Run) -> float:
    for path in (run.checkpoints / "last", run.metrics_file, run.recipe_file, run.engines):
        with contextlib.suppress(OSError):
            return path.lstat().st_mtime
    return 0.0


def table_lines(rows: Sequence[RunRow]) -> list[str]:
    """A table of runs as lines of text, with a line of headings. `latest` has a star."""
    table: list[tuple[str, ...]] = [("name", "network", "data", "epochs", "top-1", "engines", "when")]
    for row in rows:
        table.append(
            (
                printable(row.name) + (" *" if row.latest else ""),
                row.network or "-",
                printable(_short(row.data)) or "-",
                f"{row.epochs}/{row.planned_epochs}" if row.planned_epochs else "-",
                "-" if row.top1 is None else f"{row.top1:.1f}",
                ", ".join(row.engines) or "-",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(row.when)),
            )
        )
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]


def _short(data: str) -> str:
    """A path relative to the working directory, if it is below it."""
    path = Path(data)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) and data else data


def as_facts(row: RunRow) -> dict[str, Any]:
    """A row for JSON."""
    return {**row.__dict__, "engines": list(row.engines)}
