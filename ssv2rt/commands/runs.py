"""`ssv2rt runs`: the runs there are, and removing some."""

from __future__ import annotations

import json
import sys

import click

from ssv2rt.commands.options import Command, complete_engine_run, json_option


@click.group(invoke_without_command=True)
@json_option("the list")
@click.pass_context
def runs(context: click.Context, as_json: bool) -> None:
    """List the runs, or remove some.

    The last trained are first; a star marks the run that commands take where none is named. Epochs are complete and planned
    ones; top-1 is that of the best checkpoint on validation clips; when is the time of the last training.

    \b
    Examples:
      ssv2rt runs
      ssv2rt runs rm RUN
    """
    if context.invoked_subcommand:
        return
    from ssv2rt.report.run_table import as_facts, list_runs, table_lines

    rows = list_runs()
    if as_json:
        click.echo(json.dumps([as_facts(row) for row in rows]))
    elif rows:
        click.echo("\n".join(table_lines(rows)))
        if any(row.latest for row in rows):
            click.echo("* is taken where no run is named", err=True)
    else:
        click.echo("no runs yet in 'runs/'; make one with `ssv2rt train`", err=True)


@runs.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_engine_run)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove runs with their checkpoints and engines.

    A run that is being trained is not removed. If the newest run is removed, `latest` points to the next.

    \b
    Examples:
      ssv2rt runs rm RUN
      ssv2rt runs rm RUN1 RUN2 --yes
    """
    from ssv2rt.core.errors import UsageError
    from ssv2rt.core.run_folders import find_run, remove_run

    found = list(dict.fromkeys(find_run(name, for_engine=True) for name in names))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("runs rm asks before it removes anything, and stdin is no terminal; add --yes")
        click.confirm(f"remove {', '.join(str(run.path) for run in found)}?", abort=True, err=True)
    for run in found:
        remove_run(run)
        click.echo(f"removed {run.path}", err=True)
