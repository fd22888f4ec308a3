"""Prints the results of commands."""

from __future__ import annotations

import json
import os
import sys

import click

from ssv2rt.core.log import printable


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    _print(json.dumps(value))


def print_facts(facts: dict[str, object], as_json: bool) -> None:
    """Prints one line for each fact, or one line of JSON."""
    width = max(len(key) for key in facts)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else printable(str(value)) for key, value in facts.items()}
    _print(json.dumps(facts) if as_json else "\n".join(f"{key:{width}}  {text}" for key, text in texts.items()))


def _print(text: str) -> None:
    """Prints text. If nobody reads it any more, as with `| head`, that is no error."""
    try:
        click.echo(text)
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Discards what was printed and could not be written, or Python would fail at it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
