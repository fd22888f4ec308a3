"""What commands print."""

from __future__ import annotations

import json
import os
import sys

import click

from ssv2rt.core.log import printable


def print_facts(facts: dict[str, object], as_json: bool) -> None:
    """Facts as lines, or as one line of JSON. Nothing happens if nobody reads them any more, as with `| head`."""
    width = max(len(key) for key in facts)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else printable(str(value)) for key, value in facts.items()}
    try:
        click.echo(json.dumps(facts) if as_json else "\n".join(f"{key:{width}}  {text}" for key, text in texts.items()))
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Discards what was printed and could not be written, or Python would fail at it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
