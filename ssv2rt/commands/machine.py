"""The command about the machine."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, what will therefore be used, and what to install for more."""
    from ssv2rt.doctor.examine import examine, show

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts.as_dict(), indent=2))
    else:
        show(facts)
