"""Reports a comparison of networks: a table in the terminal, Markdown, JSON and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ssv2rt.core.atomic_files import write_json, write_text
from ssv2rt.core.hardware import choose_device, describe
from ssv2rt.core.recipe_files import dump_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.report.plots import BLUE, GOLD, RED, new_figure, save_figure
from ssv2rt.training.compare import ModelResult, published_sizes

_ORDER: dict[str, Callable[[ModelResult], str]] = {
    "top-1": lambda s: f"{s.order.top1:.1f}",
    "both twins right": lambda s: _percent(s.order.both_right),
    "twins told apart": lambda s: _percent(s.order.told_apart),
    "reversed": lambda s: f"{s.order.top1_reversed:.1f}",
    "shuffled": lambda s: f"{s.order.top1_shuffled:.1f}",
}
_COSTS: dict[str, Callable[[ModelResult], str]] = {
    "parameters": lambda s: f"{s.costs.parameters:,}",
    "stem": lambda s: f"{s.costs.stem_parameters:,}",
    "input MB": lambda s: f"{s.costs.input_bytes / 1e6:.2f}",
    "GFLOP": lambda s: f"{s.costs.gflops:.2f}",
    "memory MB": lambda s: f"{s.costs.memory_mb:.0f}",
    "step ms": lambda s: f"{1000 * s.costs.step_seconds:.0f}",
    "clips/s": lambda s: f"{s.costs.clips_per_second:.0f}",
}
_COLUMNS = _ORDER | _COSTS


def report(results: Sequence[ModelResult], recipe: Recipe, folder: Path) -> None:
    """Prints the table and writes comparison.md, .json, .png and .svg to a folder."""
    _show(results)
    write_text(folder / "comparison.md", markdown(results, recipe))
    write_json(
        folder / "comparison.json",
        {
            "systems": [result.as_dict() for result in results],
            "at_published_size": published_sizes([result.name for result in results]),
            "recipe": recipe.model_dump(mode="json"),
            "environment": describe(choose_device()),
        },
    )
    draw(results, folder)


def markdown(results: Sequence[ModelResult], recipe: Recipe) -> str:
    """The comparison as a Markdown page."""
    clip = recipe.clip
    sizes = published_sizes([result.name for result in results])
    pairs = results[0].order.pairs
    lines = [
        "# How networks use the order of frames",
        "",
        f"Training of each network: {recipe.train.epochs} epochs, {clip.frames} frames of {clip.size}x{clip.size}, width "
        f"{recipe.model.width}. Accuracies in percent. *Twins* are two clips with the same frames in opposite order and "
        f"opposite labels ({pairs} pairs). *Told apart*: the logit of the first twin's label minus that of the second's is "
        f"larger for the first twin; chance is 50. *Reversed* and *shuffled*: top-1 when the frames of the test clips are "
        f"reordered and the labels are not.",
        "",
        "| network | " + " | ".join(_COLUMNS) + " |",
        "|---|" + "---:|" * len(_COLUMNS),
    ]
    lines += [f"| {s.name} | " + " | ".join(cell(s) for cell in _COLUMNS.values()) + " |" for s in results]
    lines += [
        "",
        "At the published widths, with 174 classes and batches of 8 clips of 16 frames of 224x224:",
        "",
        "| network | parameters | stem | input MB (fp32) |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {size['parameters']:,} | {size['stem_parameters']:,} | {size['input_bytes_of_8'] / 1e6:.1f} |"
        for name, size in sizes.items()
    ]
    return "\n".join([*lines, "", "The recipe:", "", "```toml", dump_recipe(recipe).strip(), "```", ""])


def draw(results: Sequence[ModelResult], folder: Path) -> None:
    """Draws accuracies by order of frames (left) and accuracy over GFLOP (right), as PNG and SVG."""
    figure = new_figure(11, 0.55 * len(results) + 2.2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = range(len(results))
    bars = [
        ("top-1", [s.order.top1 for s in results], BLUE),
        ("top-1, frames reversed", [s.order.top1_reversed for s in results], RED),
        ("top-1, frames shuffled", [s.order.top1_shuffled for s in results], GOLD),
    ]
    for number, (name, values, color) in enumerate(bars):
        left.barh([r + 0.25 * (number - 1) for r in rows], values, height=0.23, color=color, label=name)
    if results[0].order.told_apart is not None:
        told_apart = [s.order.told_apart or 0.0 for s in results]
        left.plot(told_apart, list(rows), "D", color="black", label="twins told apart (chance: 50)", markersize=6)
        left.axvline(50, color="black", linewidth=0.8, linestyle=":")
    left.set_yticks(list(rows), [s.name for s in results])
    left.invert_yaxis()
    left.set_xlim(0, 103)
    left.set_xlabel("percent")
    left.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    height = -10.0
    for result in sorted(results, key=lambda s: s.order.top1):
        right.plot(result.costs.gflops, result.order.top1, "o", color=BLUE)
        height = max(result.order.top1, height + 4)  # so that the names of close points do not overlap
        right.annotate(
            result.name,
            (result.costs.gflops, height),
            xytext=(7, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    right.set_xlim(0, 1.35 * max(s.costs.gflops for s in results))
    right.set_ylim(0, 106)
    right.set_xlabel("GFLOP per clip")
    right.set_ylabel("top-1, percent")
    right.spines[["top", "right"]].set_visible(False)
    save_figure(figure, folder / "comparison")


def _show(results: Sequence[ModelResult]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    for columns in (_ORDER, _COSTS):
        table = Table(box=SIMPLE, show_edge=False)
        table.add_column("network", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right")
        for result in results:
            table.add_row(result.name, *(cell(result) for cell in columns.values()))
        Console(width=max(110, Console().width)).print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
