"""Prints benchmark results as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def show_decode(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_decode`."""
    console = _console()
    rates = figures["clips_per_second"]
    console.print(
        f"{figures['clip']} clips of {figures['videos']['first']}; {figures['threads']} threads each, to {figures['device']}"
    )
    _print_rates(console, "clips/s", rates, {"x best peer": _times(rates, rates[figures["best_peer"]]["median"])})
    _print_absent(console, figures)
    console.print(
        f"{figures['times_best_peer']:.2f} times the best peer ({figures['best_peer']}), "
        f"{figures['times_best_peer_in_float']:.2f} times the best one in float; "
        f"{figures['share_of_limit']:.2f} of the limit; "
        f"2x3 views cost {figures['times_one_view']['2x3']:.2f} times one view"
    )
    costs = ", ".join(f"{name} {value:.1f}" for name, value in figures["milliseconds_per_clip"].items())
    console.print(f"milliseconds of CPU time per clip: {costs}")
    if scale := figures.get("scale"):
        start = scale["start"]
        console.print(f"index: {scale['index_clips_per_second']:.0f} small clips/s")
        console.print(
            f"start of a loader with {start['clips']:,} clips: {start['seconds_to_open']:.1f} s to open the manifest, "
            f"{start['seconds_to_first_batch']:.1f} s to the first batch, {start['megabytes_above_bare']} MB above the "
            f"bare process, over the epoch {', '.join(map(str, start['megabytes_over_the_epoch']))}"
        )


def show_repacked(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_repacked`."""
    console = _console()
    for name, text in figures["files"].items():
        console.print(f"{name}: {text}")
    for clip, measured in figures["sizes"].items():
        console.print(f"{clip} clips; {figures['threads']} threads each, to {figures['device']}")
        rates = measured["clips_per_second"]
        cpu = measured["milliseconds_of_cpu"]
        extra = {
            "x original": _times(rates, rates["ssv2rt, original"]["median"]),
            "CPU ms/clip": {name: f"{value:.1f}" for name, value in cpu.items()},
            "x original by CPU": {name: f"{cpu['ssv2rt, original'] / value:.2f}" for name, value in cpu.items()},
        }
        _print_rates(console, "clips/s", rates, extra)
        for name in measured["times"]:
            for how, key in (("clips/s", "times"), ("CPU time", "times_by_cpu")):
                times = measured[key][name]
                console.print(
                    f"{name}, by {how}: {times['original']:.2f} times the original, {times['best_peer_on_original']:.2f} "
                    f"times the best peer on it, {times['best_peer_on_same_files']:.2f} times the best peer on the same files"
                )
    _print_absent(console, figures)


def show_train(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_train`."""
    console = _console()
    console.print(
        f"{figures['model']}, batches of {figures['batch']} clips of {figures['clip']}, {figures['device']}, "
        f"{figures['precision']}"
    )
    rates = figures["clips_per_second"]
    slowest = min(rate["median"] for rate in rates.values())
    _print_rates(console, "clips/s", rates, {"x slowest": _times(rates, slowest)})
    memory = figures["peak_memory"]
    console.print(
        f"fed by the loader: {figures['share_of_resident']:.3f} of the rate with a ready batch, "
        f"{figures['times_plain']:.2f} times the plain loop; "
        f"{figures['waiting_for_data']:.1%} of the time is spent waiting for clips\n"
        f"peak memory: {memory['megabytes']:,.0f} MB ({memory['of']})\n"
        f"FLOPs: {figures['gflop_per_step']:,.0f} GFLOP per step, {figures['gflop_per_second']:,.0f} GFLOP/s, "
        f"{figures['share_of_matrix_product']:.0%} of the {figures['matrix_product_gflop_per_second']:,.0f} that a matrix "
        f"product reaches"
    )


def show_engine(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_engine`."""
    console = _console()
    console.print(
        f"{figures['model']}, batches of {figures['batch']} clips of {figures['clip']}, {figures['threads']} threads, "
        f"{figures['device']}"
    )
    times = {name: f"{value:.2f}" for name, value in figures["times_eager"].items()}
    errors = {name: f"{value:.2%}" for name, value in figures["largest_difference"].items()}
    _print_rates(console, "clips/s", figures["clips_per_second"], {"x eager fp32": times, "logits off by": errors})
    peaks = ", ".join(f"{precision} {rate:,.0f}" for precision, rate in figures["matrix_product_gops"].items())
    gmacs, most = figures["gmacs_per_clip"], max(figures["gmacs_per_clip_in_engines"].values())
    in_engines = f", {most:.1f} where temporal shifts are folded into convolutions" if most > 1.01 * gmacs else ""
    console.print(
        f"{gmacs:.1f} GMACs per clip{in_engines}; products of large matrices reach {peaks} billion operations per second"
    )
    for name, share in figures["share_of_matrix_product"].items():
        console.print(f"{name}: {share:.2f} of the rate of such a product")
    for name, share in figures["share_of_by_hand"].items():
        console.print(f"{name}: {share:.3f} of the rate of the same engine called by hand")
    _print_absent(console, figures)


def show_score(figures: dict[str, Any]) -> None:
    """Prints the result of `benchmark_score`."""
    console = _console()
    console.print(
        f"{figures['model']}, {figures['engine']}, clips of {figures['clip']}, videos such as {figures['videos']['first']}"
    )
    _print_rates(console, "videos/s", figures["videos_per_second"], {})
    console.print(
        f"{figures['share_of_slowest']:.2f} of the slowest stage ({figures['slowest_stage']}), "
        f"{figures['share_of_both_on_the_same_cores']:.2f} of what two stages on the same cores can reach together; "
        f"{figures['times_plain']:.1f} times the plain script, {figures['times_plain_in_our_layout']:.1f} times the one in "
        "our layout"
    )
    if start := figures["start"]:
        console.print(f"first row after {start['seconds_to_first_row']:.1f} s in a folder of {start['names']:,} names")


def _console() -> Console:
    """A console that prints names as they are, without colors or markup."""
    return Console(highlight=False, markup=False)


def _print_rates(
    console: Console, unit: str, rates: Mapping[str, Mapping[str, float]], extra: Mapping[str, Mapping[str, str]]
) -> None:
    """Prints a table with a row for each contestant, the fastest first.

    Args:
        console: where to print.
        unit: heading of the rates.
        rates: median, lower (`low`) and upper (`high`) quartile of each contestant.
        extra: headings of more columns, with the text for each contestant.
    """
    table = Table("", box=SIMPLE, show_edge=False)
    for heading in (unit, "quartiles", *extra):
        table.add_column(heading, justify="right")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
        cells = [f"{rate['median']:.2f}", f"{rate['low']:.2f}-{rate['high']:.2f}"]
        table.add_row(name, *cells, *(column[name] for column in extra.values()))
    console.print(table)


def _times(rates: Mapping[str, Mapping[str, float]], reference: float) -> dict[str, str]:
    """How many times `reference` each median is."""
    return {name: f"{rate['median'] / reference:.2f}" for name, rate in rates.items()}


def _print_absent(console: Console, figures: Mapping[str, Any]) -> None:
    for name, reason in figures["absent"].items():
        console.print(f"{name}: not measured: {reason}")
