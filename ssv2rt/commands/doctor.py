"""`ssv2rt doctor`: hardware, packages and what is wrong with them."""

from __future__ import annotations

import json

import click

from ssv2rt.commands.options import Command, json_option


@click.command(cls=Command)
@json_option("the facts")
def doctor(as_json: bool) -> None:
    """Check hardware and packages, and say what to install.

    Also prints what will be used: the device, the video decoder and the engine backend.

    \b
    Examples:
      ssv2rt doctor
      ssv2rt doctor --json
    """
    from ssv2rt.core.errors import UserError
    from ssv2rt.core.log import printable
    from ssv2rt.doctor.packages import ESSENTIAL, broken_packages

    if broken := list(broken_packages(ESSENTIAL)):
        for sentence in broken:
            click.echo(printable(f"- {sentence}"), err=True)
        raise UserError(
            f"{len(broken)} packages that ssv2rt needs do not work; mend them, and run `ssv2rt doctor` again"
        )
    from ssv2rt.doctor.examine import examine, show

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts.as_dict(), indent=2))
    else:
        show(facts)
