"""`ssv2rt models`: the networks."""

from __future__ import annotations

import json

import click

from ssv2rt.commands.options import Command, json_option

CLASSES = 174
"""Number of classes of Something-Something V2."""


@click.command(cls=Command)
@json_option("the list")
def models(as_json: bool) -> None:
    """List the networks that a recipe can name.

    The number of parameters is for model.width = 64 and the 174 classes of Something-Something V2.

    \b
    Examples:
      ssv2rt models
      ssv2rt train ssv2-resnet3d18 --data DIR --set model.name=resnet3d34
    """
    from ssv2rt.models.registry import count_parameters

    parameters = count_parameters(CLASSES)
    if as_json:
        click.echo(json.dumps([{"model": name, "parameters": count} for name, count in parameters.items()]))
        return
    width = max(map(len, parameters))
    click.echo(f"{'model':{width}}  {'parameters':>12}")
    for name, count in parameters.items():
        click.echo(f"{name:{width}}  {count:12,}")
