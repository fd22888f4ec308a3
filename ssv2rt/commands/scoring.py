"""The command that scores videos."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.errors import UsageError


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Predictions: .csv, .parquet or .jsonl.")
@click.option("--engine", type=click.Path(path_type=Path), help="A bundle. Default: the newest of the newest run.")
@click.option("--run", help="The run whose newest engine is used.")
@click.option("--top-k", type=click.IntRange(min=1), help="Labels per video. Default: 5.")
@click.option("--views", help="Moments x squares of each video that are averaged, such as 2x3. Default: the run's.")
@click.option("--threads", type=click.IntRange(min=1, max=1024), help="Decoding threads. Default: one a core.")
@click.option("--overwrite", is_flag=True, help="Replace the output file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def score(
    inputs: tuple[str, ...],
    out: Path,
    engine: Path | None,
    run: str | None,
    top_k: int | None,
    views: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score videos: files, and folders with all below them. One row each, whatever happens."""
    from ssv2rt.scoring.discover import discover
    from ssv2rt.scoring.sinks import check_output, open_sink

    check_output(out, overwrite=overwrite)
    videos = list(discover(inputs))

    from ssv2rt.engines.bundle import find_bundle, open_bundle
    from ssv2rt.recipes import Data, with_views
    from ssv2rt.runs import find_run
    from ssv2rt.scoring.scorer import Scorer

    bundle = open_bundle(engine if engine else find_bundle(find_run(run)))
    classes = len(bundle.info.labels)
    if top_k and top_k > classes:
        raise UsageError(f"--top-k {top_k}: the engine has {classes} classes; take at most that")
    top_k = top_k or min(5, classes)
    clip = with_views(bundle.info.clip, views) if views else bundle.info.clip
    scorer = Scorer(bundle, top_k=top_k, data=Data(threads=threads or 0), clip=clip)
    with open_sink(out, top_k) as sink:
        summary = scorer.score(videos, sink, total=len(videos))
    print_facts(
        {"out": str(out), "engine": str(bundle.path), "videos": summary.videos, "errors": summary.errors}, as_json
    )
    if summary.errors:
        sys.exit(3)
