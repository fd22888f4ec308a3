"""Prints benchmark results as tables."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def show_decode(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_decode`."""
    console = Console()
    rates = figures["clips_per_second"]
    best = rates[figures["best_peer"]]["median"]
    table = _table("clips/s", "quartiles", "x best peer")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
        spread = f"{rate['low']:.1f}-{rate['high']:.1f}"
        table.add_row(name, f"{rate['median']:.1f}", spread, f"{rate['median'] / best:.2f}")
    console.print(
        f"{figures['clip']} clips of {figures['videos']['first']}; {figures['threads']} threads each, to {figures['device']}"
    )
    console.print(table)
    for name, reason in figures["absent"].items():
        console.print(f"{name}: not measured: {reason}", highlight=False, markup=False)
    console.print(
        f"{figures['times_best_peer']:.2f} times the best peer ({figures['best_peer']}), "
        f"{figures['times_best_peer_in_float']:.2f} times the best one in float; "
        f"{figures['share_of_limit']:.2f} of the limit; "
        f"2x3 views cost {figures['times_one_view']['2x3']:.2f} times one view"
    )
    costs = ", ".join(f"{name} {value:.1f}" for name, value in figures["milliseconds_per_clip"].items())
    console.print(f"milliseconds of CPU time per clip: {costs}", highlight=False, markup=False)
    if scale := figures.get("scale"):
        start = scale["start"]
        console.print(f"index: {scale['index_clips_per_second']:.0f} small clips/s", highlight=False, markup=False)
        console.print(
            f"start of a loader with {start['clips']:,} clips: {start['seconds_to_open']:.1f} s to open the manifest, "
            f"{start['seconds_to_first_batch']:.1f} s to the first batch, {start['megabytes_above_bare']} MB above the "
            f"bare process, over the epoch {', '.join(map(str, start['megabytes_over_the_epoch']))}",
            highlight=False,
            markup=False,
        )


def show_train(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_train`."""
    console = Console()
    console.print(
        f"{figures['model']}, batches of {figures['batch']} clips of {figures['clip']}, {figures['device']}, "
        f"{figures['precision']}",
        highlight=False,
        markup=False,
    )
    rates = figures["clips_per_second"]
    slowest = min(rate["median"] for rate in rates.values())
    table = _table("clips/s", "quartiles", "x slowest")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
        spread = f"{rate['low']:.2f}-{rate['high']:.2f}"
        table.add_row(name, f"{rate['median']:.2f}", spread, f"{rate['median'] / slowest:.2f}")
    console.print(table)
    memory = figures["peak_memory"]
    console.print(
        f"fed by the loader: {figures['share_of_resident']:.3f} of the rate with a ready batch, "
        f"{figures['times_plain']:.2f} times the plain loop; "
        f"{figures['waiting_for_data']:.1%} of the time is spent waiting for clips\n"
        f"peak memory: {memory['megabytes']:,.0f} MB ({memory['of']})\n"
        f"FLOPs: {figures['gflop_per_step']:,.0f} GFLOP per step, {figures['gflop_per_second']:,.0f} GFLOP/s, "
        f"{figures['share_of_matrix_product']:.0%} of the {figures['matrix_product_gflop_per_second']:,.0f} that a matrix "
        f"product reaches",
        highlight=False,
        markup=False,
    )


def show_engine(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_engine`."""
    console = Console()
    console.print(
        f"{figures['model']}, batches of {figures['batch']} clips of {figures['clip']}, {figures['threads']} threads, "
        f"{figures['device']}",
        highlight=False,
        markup=False,
    )
    rates, off = figures["clips_per_second"], figures["largest_difference"]
    table = _table("clips/s", "quartiles", "x eager fp32", "logits off by")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
        spread = f"{rate['low']:.1f}-{rate['high']:.1f}"
        times = figures["times_eager"][name]
        table.add_row(name, f"{rate['median']:.1f}", spread, f"{times:.2f}", f"{off[name]:.2%}")
    console.print(table)
    for name, share in figures["share_of_by_hand"].items():
        console.print(
            f"{name}: {share:.3f} of the rate of the same engine called by hand", highlight=False, markup=False
        )
    for name, reason in figures["absent"].items():
        console.print(f"{name}: not measured: {reason}", highlight=False, markup=False)


def show_score(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_score`."""
    console = Console()
    console.print(
        f"{figures['model']}, {figures['engine']}, clips of {figures['clip']}, videos such as {figures['videos']['first']}",
        highlight=False,
    )
    table = _table("videos/s", "quartiles")
    for name, rate in sorted(figures["videos_per_second"].items(), key=lambda item: -item[1]["median"]):
        table.add_row(name, f"{rate['median']:.2f}", f"{rate['low']:.2f}-{rate['high']:.2f}")
    console.print(table)
    console.print(
        f"{figures['share_of_slowest']:.2f} of the slowest stage ({figures['slowest_stage']}), "
        f"{figures['share_of_both_on_the_same_cores']:.2f} of what two stages on the same cores can give together; "
        f"{figures['times_plain']:.1f} times the plain script, {figures['times_plain_in_our_layout']:.1f} times the one in "
        "our layout",
        highlight=False,
    )
    if start := figures["start"]:
        console.print(
            f"first row after {start['seconds_to_first_row']:.1f} s in a folder of {start['names']:,} names",
            highlight=False,
        )


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
