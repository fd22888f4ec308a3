"""Prints the results of commands."""

from __future__ import annotations

import json

import click

from ssv2rt.core.log import printable


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    click.echo(json.dumps(value))


def print_facts(facts: dict[str, object], as_json: bool) -> None:
    """Prints one line for each fact, or one line of JSON."""
    if as_json:
        print_json(facts)
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        click.echo(printable(f"{key:{width}}  {text}"))
