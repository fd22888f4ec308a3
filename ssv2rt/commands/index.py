"""`ssv2rt index`: probes the clips of a data set, and reports damaged ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from ssv2rt.commands.options import Command, json_option

logger = logging.getLogger(__name__)


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Manifest file. Default: manifest.parquet in the folder of the data."
)
@click.option("--decode", is_flag=True, help="Also decode every frame, to find damage that headers do not show.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Processes. Default: one per core; take more for slow storage."
)
@json_option("the summary")
def index(data: Path, out: Path | None, decode: bool, workers: int | None, as_json: bool) -> None:
    """Probe every clip of a data set, and report damaged ones.

    DATA is a folder in the layout of SSv2, a folder with one folder per class, or a .csv, .tsv or .parquet table with the
    columns path and label. The results are stored in a manifest, and unchanged clips are not probed again.

    \b
    Examples:
      ssv2rt index DIR
      ssv2rt index DIR --decode --workers 16
    """
    from ssv2rt.core.progress import Progress
    from ssv2rt.dataset.class_warnings import warn_about_classes
    from ssv2rt.dataset.index import index as index_clips
    from ssv2rt.dataset.summary import print_summary, summarize

    with Progress(f"indexing {data}") as progress:
        manifest, where = index_clips(data, out=out, decode=decode, workers=workers or 0, progress=progress.show)
    warn_about_classes(manifest)
    if text := manifest.without_labels():
        logger.warning(text)
    summary = summarize(manifest, where)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        print_summary(summary)
