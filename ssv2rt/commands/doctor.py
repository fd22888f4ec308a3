"""`ssv2rt doctor`: what this machine has."""

from __future__ import annotations

import json

import click

from ssv2rt.commands.options import Command, json_option


@click.command(cls=Command)
@json_option("the facts")
def doctor(as_json: bool) -> None:
    """Say what this machine has, and what to install for more.

    It also says what will be used: which device, which decoder, and which backend for engines.

    \b
    Examples:
      ssv2rt doctor
      ssv2rt doctor --json
    """
    from ssv2rt.doctor.examine import examine, show

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts.as_dict(), indent=2))
    else:
        show(facts)
