"""`ssv2rt models`: the networks, and published weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ssv2rt.commands.options import Command, json_option

if TYPE_CHECKING:
    from ssv2rt.published.catalog import Published

CLASSES = 174
"""Number of classes of Something-Something V2."""


@click.command(cls=Command)
@json_option("the list")
def models(as_json: bool) -> None:
    """List the networks and published weights.

    A recipe names its network by `model.name`. The number of parameters is for model.width = 64 and the 174 classes of
    Something-Something V2. Published weights are for `import` and `train --init`; their clips, views and accuracy are the
    publishers', GMACs are 10^9 multiply-accumulates of one view, and "here" says whether the file is on this machine.

    \b
    Examples:
      ssv2rt models
      ssv2rt import i3d-r50-ssv2
    """
    from ssv2rt.models.registry import count_parameters
    from ssv2rt.published.catalog import DATA_SETS, IMAGENET, PUBLISHED

    parameters = count_parameters(CLASSES)
    if as_json:
        networks = [
            {
                "model": name,
                "parameters": count,
                "published": [_facts(entry) for entry in PUBLISHED.values() if entry.model.name == name],
            }
            for name, count in parameters.items()
        ]
        click.echo(json.dumps(networks))
        return
    width = max(map(len, parameters))
    click.echo(f"{'model':{width}}  {'parameters':>12}")
    for name, count in parameters.items():
        click.echo(f"{name:{width}}  {count:12,}")
    header = ("Mparams", "GMACs", "clip", "views", "top-1", "top-5", "from", "license", "here")
    rows = {entry: _row(entry) for entry in PUBLISHED.values()}
    widths = [max(map(len, column)) for column in zip(("", *header), *rows.values(), strict=True)]
    for data_set in DATA_SETS.values():
        click.echo(f"\npublished, on {data_set}")
        for row in (("", *header), *(row for entry, row in rows.items() if entry.data_set == data_set)):
            cells = zip(row, widths, strict=True)
            text = " ".join(f"{word:>{w}}" if 0 < at < 7 else f"{word:{w}}" for at, (word, w) in enumerate(cells))
            click.echo(text.rstrip())
    click.echo(f"\nOf ImageNet, for `train --init`: {', '.join(IMAGENET)}")


def _row(entry: Published) -> tuple[str, ...]:
    from ssv2rt.published.download import downloaded

    clip = entry.clip
    return (
        entry.name,
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.gmacs:.1f}",
        f"{clip.frames}x{clip.size}",
        f"{clip.views[0]}x{clip.views[1]}",
        f"{entry.top1:.2f}",
        f"{entry.top5:.2f}" if entry.top5 is not None else "",
        entry.publisher,
        entry.license,
        "yes" if downloaded(entry) else "no",
    )


def _facts(entry: Published) -> dict[str, object]:
    from ssv2rt.published.download import downloaded

    file = downloaded(entry)
    return {
        "name": entry.name,
        "parameters": entry.parameters,
        "gmacs": entry.gmacs,
        "frames": entry.clip.frames,
        "size": entry.clip.size,
        "views": entry.clip.views,
        "data_set": entry.data_set,
        "top1": entry.top1,
        "top5": entry.top5,
        "publisher": entry.publisher,
        "url": entry.url,
        "license": entry.license,
        "paper": entry.paper,
        "file": str(file) if file else None,
    }
