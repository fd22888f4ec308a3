"""`ssv2rt recipes`: the recipes, and every setting of one."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_any_recipe, json_option

WIDEST = 110
"""Columns of text when the output is not a terminal."""


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_any_recipe)
@json_option("the list")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show every setting of one.

    Each setting is shown with its value, its meaning, the allowed values and the default. NAME is the name of a recipe, or the
    path of a .toml file.

    \b
    Examples:
      ssv2rt recipes
      ssv2rt recipes ssv2-resnet3d18
    """
    from ssv2rt.core.describe_recipes import describe_recipe, list_recipes

    found = describe_recipe(name) if name else list_recipes()
    if as_json:
        click.echo(json.dumps(found))
    elif name:
        _show_settings(found)
    else:
        _show_list(found)


def _show_list(found: list[dict[str, str]]) -> None:
    width = max(len(entry["recipe"]) for entry in found) + 2
    kind = ""
    for entry in found:
        if entry["kind"] != kind:
            kind = entry["kind"]
            click.echo(f"{kind} recipes")
        click.echo(_wrapped(entry["about"], first=f"  {entry['recipe']:{width}}", indent=width + 2))


def _show_settings(settings: list[dict[str, Any]]) -> None:
    table = ""
    for setting in settings:
        within, _, key = setting["setting"].rpartition(".")
        if within != table:
            click.echo(f"{chr(10) if table else ''}[{within}]")
            table = within
        value = _as_text(setting["value"])
        click.echo(f"{key} {value if setting['value'] is None else f'= {value}'}")
        click.echo(_wrapped(setting["meaning"], first="    ", indent=4))
        bounds = f"Allowed: {setting['allowed']}. Default: {_as_text(setting['default'])}."
        click.echo(_wrapped(bounds, first="    ", indent=4))


def _as_text(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, *, first: str, indent: int) -> str:
    width = max(50, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
