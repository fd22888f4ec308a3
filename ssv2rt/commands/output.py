"""Prints the results of commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from ssv2rt.core.log import printable


def print_json(value: object) -> None:
    """Prints one line of JSON."""
    _print(json.dumps(value))


def print_facts(
    facts: dict[str, object], as_json: bool, *, classes: Sequence[tuple[str, int, float]] = (), most: int = 5
) -> None:
    """Prints one line for each fact, or one line of JSON.

    Args:
        facts: by name.
        as_json: whether to print JSON.
        classes: label, number of clips and accuracy in percent of each class, the worst first. JSON has all of them, as
            the fact "classes"; the text ends with a table of the first.
        most: classes in that table.
    """
    if classes and as_json:
        names = ("label", "clips", "accuracy")
        facts = facts | {"classes": [dict(zip(names, figures, strict=True)) for figures in classes]}
    width = max(len(key) for key in facts)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else printable(str(value)) for key, value in facts.items()}
    lines = [f"{key:{width}}  {text}" for key, text in texts.items()]
    if classes:
        lines += ["", "accuracy  clips  worst classes" if len(classes) > most else "accuracy  clips  class"]
        lines += [f"{accuracy:8.2f}  {clips:5}  {printable(label)}" for label, clips, accuracy in classes[:most]]
    _print(json.dumps(facts) if as_json else "\n".join(lines))


def _print(text: str) -> None:
    """Prints text. If nobody reads it any more, as with `| head`, that is no error."""
    try:
        click.echo(text)
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Discards what was printed and could not be written, or Python would fail at it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
