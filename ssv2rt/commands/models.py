"""`ssv2rt models`: the networks."""

from __future__ import annotations

import json

import click

from ssv2rt.commands.options import Command, json_option

CLASSES = 174
"""Of Something-Something V2."""


@click.command(cls=Command)
@json_option("the list")
def models(as_json: bool) -> None:
    """List the networks that a recipe can name.

    Parameters are those with model.width = 64 and the 174 classes of Something-Something V2.

    \b
    Examples:
      ssv2rt models
      ssv2rt train ssv2-resnet3d18 --data DIR --set model.name=resnet3d34
    """
    import torch

    from ssv2rt.core.recipes import Model
    from ssv2rt.models.registry import build_model, model_names

    found = []
    for name in model_names():
        with torch.device("meta"):  # counted without memory for the weights
            network = build_model(Model(name=name), CLASSES)
        found.append({"model": name, "parameters": sum(p.numel() for p in network.parameters())})
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max(len(str(entry["model"])) for entry in found)
    click.echo(f"{'model':{width}}  {'parameters':>12}")
    for entry in found:
        click.echo(f"{entry['model']:{width}}  {entry['parameters']:12,}")
