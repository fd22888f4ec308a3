"""`ssv2rt merge`: the outputs of several calls of `score` in one file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ssv2rt.commands.options import Command, json_option
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output file: .csv, .parquet or .jsonl.")
@click.option(
    "--expect",
    multiple=True,
    metavar="INPUT",
    help="Input of `score`; its videos without a row are missing. May be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@json_option("the summary")
def merge(parts: tuple[Path, ...], out: Path, expect: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Merge outputs of `score`, such as those of shards, into one.

    PARTS are output files of `score`. It counts videos that have a row in several parts (doubled) or in none (missing).

    \b
    Examples:
      ssv2rt merge 1.csv 2.csv 3.csv --out preds.csv
      ssv2rt merge 1.csv 2.csv --out preds.csv --expect clips/
    """
    from ssv2rt.scoring.discover import check_inputs, discover
    from ssv2rt.scoring.merge import merge as merge_parts
    from ssv2rt.scoring.writers import check_output

    check_output(out, overwrite=overwrite)
    if expect:
        check_inputs(expect)
    merged = merge_parts(parts, out, discover(expect) if expect else ())
    counts = {"doubled": merged.duplicates, "missing": merged.missing}
    print_facts({"out": str(out), "videos": merged.videos, "errors": merged.errors, **counts}, as_json)
    if merged.missing:
        sys.exit(1)
    if merged.errors:
        sys.exit(3)
