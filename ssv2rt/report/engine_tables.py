"""Prints what `ssv2rt inspect` found in an engine bundle or an ONNX file, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssv2rt.core.log import printable
from ssv2rt.core.recipes import Clip

WIDTH = 132
"""Columns of a table when the output is not a terminal."""


def show_description(facts: Mapping[str, Any]) -> None:
    """Prints the result of `engines.inspect.describe`."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    graph, bundle = facts["graph"], facts["bundle"]
    tables = [_engines(facts["engines"])] if facts["engines"] else []
    tables += [_pairs("engine", _of_bundle(bundle))] if bundle else []
    tables += [
        _pairs("graph", _of_graph(graph)),
        _layers(graph["layers"]),
        _pairs("totals", _of_totals(graph["totals"])),
    ]
    if bundle:
        verification = bundle["verification"] or {}
        measured = {
            name: "not measured" if value is None else value
            for name, value in verification.items()
            # A network without an embedding has no similarity of it, and most engines have no failures.
            if value not in (None, []) or name.startswith("top1")
        }
        measured |= {"notes": "; ".join(verification["notes"])} if verification.get("notes") else {}
        more = {"calibration": bundle["calibration"], "verification": measured}
        more["layers of the finished engine"] = bundle["engine_layers"]
        tables += [_pairs(title, _flat(figures)) for title, figures in more.items() if figures]
    for table in tables:
        console.print(table)
        console.print()


def _engines(engines: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="engines of the run, the newest first", title_justify="left", box=SIMPLE)
    for heading in ("engine", "backend", "built for", "runs here"):
        table.add_column(heading)
    for engine in engines:
        backend = f"{engine.get('backend', '?')} {engine.get('backend_version', '')}"
        runs = f"no: {engine['cannot_run']}" if engine["cannot_run"] else "yes"
        _add(table, engine["name"], backend, engine.get("target", "?"), runs)
    return table


def _of_bundle(bundle: Mapping[str, Any]) -> dict[str, object]:
    clip, batch = bundle["clip"], bundle["batch"]
    return {
        "folder": bundle["path"],
        "model": bundle["model"],
        "precision": bundle["precision"],
        "backend": f"{bundle['backend']} {bundle['backend_version']}",
        "built for": bundle["target"],
        "batch": f"{batch['min']} to {batch['max']} clips, best at {batch['best']}",
        "clip": f"{clip['frames']} frames of {clip['size']}x{clip['size']}, {Clip.model_validate(clip).in_words}",
        **facts_of_import(bundle["imported"]),
        "classes": f"{len(bundle['labels'])}: {_some(bundle['labels'])}",
        "weights": f"SHA-256 {bundle['weights_sha256']}",
        **{f"file {name}": _bytes(file["bytes"]) for name, file in bundle["files"].items()},
        **{f"setting {key}": value for key, value in _flat(bundle["settings"]).items()},
        "rebuild with": bundle["rebuild"],
    }


def facts_of_import(imported: Mapping[str, Any] | None) -> dict[str, object]:
    """What to print of `BundleInfo.imported`."""
    facts: dict[str, object] = {}
    if imported and "mean" in imported:
        mean, std = (", ".join(f"{value:g}" for value in imported[key]) for key in ("mean", "std"))
        facts["pixels"] = f"(value / {imported['scale']:g} - [{mean}]) / [{std}]"
    if imported and "colors" in imported:
        facts["colors"] = imported["colors"]
    if imported and "cut" in imported:
        facts["cut off"] = imported["cut"]
    if imported and imported["assumed"]:
        facts["assumed"] = ", ".join(imported["assumed"])
    return facts


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
        "parameters of the graph": f"{totals['parameters']:,}",
        "weights": f"{_bytes(totals['weight_bytes'])} in the file, {_bytes(totals['run_bytes'])} in computation",
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
    return Table(box=SIMPLE, show_edge=False, title=title, title_justify="left", title_style="bold")


def _add(table: Table, *cells: str) -> None:
    """Adds a row of plain text, without the control characters that names in a file may contain."""
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
