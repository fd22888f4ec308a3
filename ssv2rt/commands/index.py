"""`ssv2rt index`: what the clips of a data set are, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.options import Command, json_option


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The manifest. Default: manifest.parquet beside the data.")
@click.option("--decode", is_flag=True, help="Also decode every frame: finds damage that headers do not show.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes. Default: one a core; more for slow storage.")
@json_option("the summary")
def index(data: Path, out: Path | None, decode: bool, workers: int | None, as_json: bool) -> None:
    """Look at every clip of a data set, and say what is wrong.

    DATA is SSv2's folder, a folder with one for each class, or a .csv or .parquet table with the columns path and label. What
    each clip is goes into a manifest, so that no clip is looked at twice.

    \b
    Examples:
      ssv2rt index DIR
      ssv2rt index DIR --decode --workers 16
    """
    from ssv2rt.core.progress import Progress
    from ssv2rt.dataset.index import index as look_at_all
    from ssv2rt.dataset.summary import print_summary, summarize

    with Progress(f"indexing {data}") as progress:
        manifest, where = look_at_all(data, out=out, decode=decode, workers=workers or 0, progress=progress.show)
    summary = summarize(manifest, where)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        print_summary(summary)
