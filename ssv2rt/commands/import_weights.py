"""`ssv2rt import`: a run from published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_published, json_option
from ssv2rt.commands.output import print_facts


@click.command("import", cls=Command)
@click.argument("source", metavar="NAME|FILE", shell_complete=complete_published)
@click.option(
    "--as",
    "network",
    metavar="NAME",
    shell_complete=complete_published,
    help="Published network that FILE has weights of. Default: found by its name and weights.",
)
@click.option("--name", default="", help="Name of the run directory. Default: the network's name and the time.")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="File with the class names. Default: the published ones."
)
@json_option("the result")
def import_weights(as_json: bool, **options: Any) -> None:
    """Make a run from published weights.

    NAME is one of the published weights that `ssv2rt models` lists; they are downloaded once, into the cache. FILE is such a
    file from elsewhere, or a checkpoint of another run. The new run is the newest one, and has labels, clips and views as
    published, so that evaluate, build-engine, score and train --init work on it.

    \b
    Examples:
      ssv2rt import i3d-r50-ssv2
      ssv2rt import SSV2-I3D-ResNet-50-f32.pth.tar --name i3d
    """
    from ssv2rt.api import jobs
    from ssv2rt.core.run_folders import Run
    from ssv2rt.published.import_run import read_source

    run = Run(jobs.import_weights(**options))
    recipe, source = run.recipe(), read_source(run)
    assert source is not None  # importing has just written it
    published = source.published
    facts: dict[str, object] = {
        "run": str(run.path),
        "network": recipe.model.name,
        "clip": f"{recipe.clip.frames} frames of {recipe.clip.size}x{recipe.clip.size}, {recipe.clip.in_words}",
        "file": source.file,
        "sha256": source.sha256,
    }
    if published:
        facts |= {"data set": published.data_set, "top-1, published": published.top1}
        facts |= {"license": published.license, "from": published.url}
    print_facts(facts, as_json)
