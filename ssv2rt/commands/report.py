"""`ssv2rt report`: a web page about a run, predictions or an engine."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_run, json_option, under
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("source", required=False, metavar="RUN|PREDICTIONS|ENGINE", shell_complete=complete_run)
@under(
    "Input and output",
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="report.html",
        show_default=True,
        help="The .html file; one of that name is replaced.",
    ),
    click.option("--data", type=click.Path(path_type=Path), help="Data set of the clips. Default: the run's."),
    json_option("the result"),
)
@under(
    "Clips",
    click.option(
        "--clips",
        default=500,
        show_default=True,
        type=click.IntRange(1, 500),
        help="Clips that are shown with their frames.",
    ),
    click.option(
        "--explain",
        default=0,
        show_default=True,
        type=click.IntRange(0, 500),
        help="Of a run: clips with an overlay of what speaks for the prediction (Grad-CAM).",
    ),
)
def report(source: str | None, out: Path, data: Path | None, clips: int, explain: int, as_json: bool) -> None:
    """Write a web page about a run, predictions or an engine.

    The page is one file, which a browser opens without network. Of a run, by default the newest, it shows curves, classes,
    the confusion matrix, and clips with their predictions; of an output of `score` a gallery, or windows on a timeline; of an
    engine the comparison with its network.

    \b
    Examples:
      ssv2rt report --explain 24
      ssv2rt report preds.csv --out preds.html
    """
    from ssv2rt.report.html.make import make_report

    size = make_report(source, out, data=data, clips=clips, explain=explain)
    print_facts({"report": str(out), "megabytes": round(size / 1e6, 2)}, as_json)
