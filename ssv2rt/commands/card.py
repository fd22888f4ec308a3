"""`ssv2rt card`: a model card of a run."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_run


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file, such as README.md. Default: stdout.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.option(
    "--license",
    metavar="ID",
    help="License of weights of your own, such as apache-2.0. Default: unknown; that of published weights is known.",
)
def card(run: str | None, out: Path | None, overwrite: bool, license: str | None) -> None:
    """Write a model card of a run. Default: the newest run.

    The card has the form of README.md at Hugging Face: license, data set and measured accuracy in its header; then input,
    training or source, accuracy, engines and labels. What `evaluate` measures of a run is kept for its card.

    \b
    Examples:
      ssv2rt card --license apache-2.0
      ssv2rt card i3d-r50-ssv2-20260101-120000 --out README.md
    """
    import os

    from ssv2rt.core.atomic_files import write_text
    from ssv2rt.core.errors import UsageError, os_errors_as_user_errors
    from ssv2rt.core.run_folders import find_run
    from ssv2rt.report.model_card import model_card

    if out and os.path.lexists(out) and not (overwrite and out.is_file()):
        raise UsageError(f"--out {out} exists; choose another name{', or add --overwrite' if out.is_file() else ''}")
    text = model_card(find_run(run), license)
    if out is None:
        click.echo(text, nl=False)
        return
    with os_errors_as_user_errors(f"cannot write '{out}'", "mend that, or choose another --out"):
        write_text(out, text)
