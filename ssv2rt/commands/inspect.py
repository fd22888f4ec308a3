"""`ssv2rt inspect`: what is in an engine or a graph."""

from __future__ import annotations

import click

from ssv2rt.commands.options import Command, complete_engine_run, json_option
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("engine", required=False, metavar="[ENGINE|RUN|ONNX]", shell_complete=complete_engine_run)
@json_option("everything")
def inspect(engine: str | None, as_json: bool) -> None:
    """Show layers, precisions and accuracy of an engine.

    Give an engine (int8, or its folder), a run, whose newest engine is shown, or an ONNX file. Default: the newest run.

    \b
    Examples:
      ssv2rt inspect
      ssv2rt inspect int8
    """
    from ssv2rt.engines.inspect import describe
    from ssv2rt.report.engine_tables import show_description

    facts = describe(engine)
    if as_json:
        print_facts(facts, True)
    else:
        show_description(facts)
