"""`ssv2rt inspect`: what is in an engine or a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssv2rt.commands.options import Command, complete_run, json_option
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError, UserError, nearest
from ssv2rt.core.log import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ssv2rt.engines.bundle import Bundle

WIDTH = 132
"""Columns of a table that no terminal limits."""


@click.command(cls=Command)
@click.argument("engine", required=False, metavar="[ENGINE|RUN|ONNX]", shell_complete=complete_run)
@json_option("everything")
def inspect(engine: str | None, as_json: bool) -> None:
    """Show layers, precisions and figures of an engine.

    Or of an ONNX file. Default: the newest engine. An engine is named by its folder (runs/NAME/engines/int8), or by its run,
    of which the newest engine is taken.

    \b
    Examples:
      ssv2rt inspect
      ssv2rt inspect runs/latest/engines/int8
    """
    from ssv2rt.engines.inspect import describe_bundle, describe_graph
    from ssv2rt.engines.onnx_files import read_graph_and_weight_files

    found = _find(engine)
    file = found if isinstance(found, Path) else found.onnx_file
    model, beside = read_graph_and_weight_files(file)
    facts: dict[str, object] = {
        "bundle": None if isinstance(found, Path) else describe_bundle(found),
        "graph": {
            "path": str(file),
            "files": {part.name: part.stat().st_size for part in (file, *beside)},
            **describe_graph(model),
        },
    }
    if as_json:
        print_facts(facts, True)
    else:
        _show(facts)


def _find(name: str | None) -> Bundle | Path:
    """An engine's bundle, or an ONNX file.

    Raises:
        UserError: what is there is neither, nor a run with an engine.
        UsageError: there is nothing with that name.
    """
    from ssv2rt.core.run_folders import RUNS, find_run
    from ssv2rt.engines.bundle import INFO, find_bundle, open_bundle

    if name is None:
        return open_bundle(find_bundle(find_run()))
    path = Path(name)
    try:
        if path.is_file():
            return path
        exists, is_engine = path.exists(), (path / INFO).is_file()
        is_run = any((place / "recipe.toml").is_file() for place in (path, RUNS / name))
    except OSError as error:
        raise UserError(f"cannot look into '{name}': {error.strerror or error}; name a path that can be read") from None
    except ValueError:  # no name that a file can have
        exists = is_engine = is_run = False
    if is_engine:
        return open_bundle(path)
    if is_run:
        return open_bundle(find_bundle(find_run(name)))
    if exists:
        raise UserError(
            f"'{name}' holds no {INFO} and no run; give an engine's folder (runs/NAME/engines/int8), a run, or an .onnx file"
        )
    known = sorted(recipe.parent.name for recipe in RUNS.glob("*/recipe.toml"))
    raise UsageError(
        f"no engine, run or ONNX file '{name}'{nearest(name, known)}; give an engine's folder, an .onnx file, or one of the "
        f"runs in '{RUNS}/': {', '.join(known) or 'none yet'}"
    )


def _show(facts: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    graph, bundle = facts["graph"], facts["bundle"]
    tables = [_pairs("engine", _of_bundle(bundle))] if bundle else []
    tables += [
        _pairs("graph", _of_graph(graph)),
        _layers(graph["layers"]),
        _pairs("totals", _of_totals(graph["totals"])),
    ]
    if bundle:
        more = {name: bundle[name] for name in ("calibration", "verification")}
        more["layers of the finished engine"] = bundle["engine_layers"]
        tables += [_pairs(title, _flat(figures)) for title, figures in more.items() if figures]
    for table in tables:
        console.print(table)
        console.print()


def _of_bundle(bundle: Mapping[str, Any]) -> dict[str, object]:
    clip, batch = bundle["clip"], bundle["batch"]
    return {
        "folder": bundle["path"],
        "model": bundle["model"],
        "precision": bundle["precision"],
        "backend": f"{bundle['backend']} {bundle['backend_version']}",
        "built for": bundle["target"],
        "batch": f"{batch['min']} to {batch['max']} clips, best at {batch['best']}",
        "clip": f"{clip['frames']} frames of {clip['size']}x{clip['size']}, {clip['sampling']} sampling",
        "classes": f"{len(bundle['labels'])}: {_some(bundle['labels'])}",
        "weights": f"SHA-256 {bundle['weights_sha256']}",
        **{f"file {name}": _bytes(file["bytes"]) for name, file in bundle["files"].items()},
        **{f"setting {key}": value for key, value in _flat(bundle["settings"]).items()},
        "rebuild with": bundle["rebuild"],
    }


def _of_graph(graph: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {"file": graph["path"]}
    facts |= {f"size of {name}": _bytes(size) for name, size in graph["files"].items()}
    for kind in ("inputs", "outputs"):
        for port in graph[kind]:
            facts[f"{kind[:-1]} {port['name']}"] = f"{port['dtype']} {_shape(port['shape'])}"
    facts["opset"] = ", ".join(f"{domain} {version}" for domain, version in graph["opset"].items())
    facts["made by"] = graph["producer"]
    facts["nodes"] = graph["nodes"]
    return facts | {f"metadata {key}": _cut(value) for key, value in graph["metadata"].items()}


def _of_totals(totals: Mapping[str, Any]) -> dict[str, object]:
    shares = ", ".join(f"{share:.1%} {name}" for name, share in totals["share_of_macs"].items())
    gmacs = totals["gmacs"]
    amount = f"{gmacs:,.2f} GMAC" if gmacs >= 1 else f"{1000 * gmacs:,.2f} MMAC"
    facts: dict[str, object] = {
        "parameters": f"{totals['parameters']:,}",
        "weights": f"{_bytes(totals['weight_bytes'])} as stored, {_bytes(totals['run_bytes'])} as computed with",
        "for one clip": amount + (f": {shares}" if shares else ""),
    }
    if totals["uncounted"]:
        facts["not counted"] = f"{totals['uncounted']} layers whose shapes are not known"
    return facts


def _layers(layers: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("layers")
    for name in ("layer", "kind", "precision", "weight", "result"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "MMAC/clip", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers:
        macs, share = layer["macs"], layer["share"]
        _add(
            table,
            layer["name"],
            layer["op"],
            layer["precision"],
            "x".join(map(str, layer["weight"])) if layer["weight"] else "",
            _shape(layer["output"]),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            "?" if macs is None else f"{macs / 1e6:,.2f}" if macs else "",
            f"{share:.1%}" if share else "",
        )
    return table


def _pairs(title: str, facts: Mapping[str, object]) -> Table:
    table = _table(title)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        _add(table, key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _table(title: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(box=SIMPLE, show_edge=False, title=title, title_justify="left", title_style="bold")


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: names in a file may hold anything, and a terminal obeys control characters."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, object]:
    """Nested facts in one level, with keys like 'clips_per_second bf16'."""
    found: dict[str, object] = {}
    for key, entry in value.items():
        name = f"{before} {key}".strip()
        if isinstance(entry, Mapping):
            found |= _flat(entry, name)
        else:
            found[name] = _some(entry) if isinstance(entry, (list, tuple)) else entry
    return found


def _some(entries: Iterable[object]) -> str:
    return _cut(", ".join(map(str, entries)))


def _cut(text: str, length: int = 90) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _shape(shape: Iterable[int | str] | None) -> str:
    return "?" if shape is None else f"[{', '.join(map(str, shape))}]"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 10_000 else f"{count:,} bytes"
