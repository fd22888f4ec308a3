"""`ssv2rt recipes`: the recipes, and every setting of one."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ssv2rt.commands.options import Command, complete_any_recipe, json_option
from ssv2rt.core.errors import UsageError, suggest

if TYPE_CHECKING:
    from pydantic import BaseModel

WIDEST = 110
"""Columns of text that no terminal limits."""
KINDS: dict[str, Literal["pipelines", "engines"]] = {"training": "pipelines", "engine": "engines"}
"""The kinds of recipes, and the folders of each."""


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_any_recipe)
@json_option("them")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show every setting of one.

    A setting is shown with its value, its meaning, and what is allowed. NAME is a recipe's name, or the path of a .toml file.

    \b
    Examples:
      ssv2rt recipes
      ssv2rt recipes ssv2-resnet3d18
    """
    if name is None:
        found = list(_all())
        if as_json:
            click.echo(json.dumps(found))
        else:
            _show_all(found)
        return
    settings = list(_settings(_load(name)))
    if as_json:
        click.echo(json.dumps(settings))
    else:
        _show(settings)


def _all() -> Iterator[dict[str, str]]:
    """Name, kind, and first line of each recipe."""
    from ssv2rt.core.recipe_files import recipe_folders, recipe_names

    for kind, folder in KINDS.items():
        for name in recipe_names(folder):
            places = [place / f"{name}.toml" for place in recipe_folders(folder)]
            path = next(path for path in places if path.is_file())
            yield {"recipe": name, "kind": kind, "about": _first_comment(path).removeprefix(f"{name}: ")}


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def _show_all(found: list[dict[str, str]]) -> None:
    width = max(len(entry["recipe"]) for entry in found) + 2
    for kind in KINDS:
        click.echo(f"{kind} recipes")
        for entry in found:
            if entry["kind"] == kind:
                click.echo(_wrapped(entry["about"], first=f"  {entry['recipe']:{width}}", indent=width + 2))


def _load(name: str) -> BaseModel:
    """The recipe of either kind."""
    from ssv2rt.core.recipe_files import load_engine_recipe, load_recipe, recipe_names

    training, engine = recipe_names("pipelines"), recipe_names("engines")
    if name.endswith(".toml") or "/" in name:
        return load_engine_recipe(name) if _is_engine_recipe(Path(name)) else load_recipe(name)
    if name not in (*training, *engine):
        raise UsageError(f"no recipe '{name}'{suggest(name, [*training, *engine])}")
    return load_recipe(name) if name in training else load_engine_recipe(name)


def _is_engine_recipe(path: Path) -> bool:
    """Whether a file has a table that only recipes of engines have."""
    from ssv2rt.core.recipes import EngineRecipe

    tables = tuple(f"[{table}" for table in EngineRecipe.model_fields)
    try:
        return any(line.startswith(tables) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False  # `load_recipe` says what is wrong


def _settings(section: BaseModel, before: str = "") -> Iterator[dict[str, Any]]:
    """Every setting of a recipe, with those of the tables within it."""
    from pydantic import BaseModel

    schema = type(section).model_json_schema()["properties"]
    values = {key: getattr(section, key) for key in schema}
    tables = {key: value for key, value in values.items() if isinstance(value, BaseModel)}
    for key in (key for key in values if key not in tables):
        yield {
            "setting": before + key,
            "value": values[key],
            "meaning": " ".join((type(section).model_fields[key].description or "").split()),
            "allowed": _allowed(schema[key]),
        }
    for key, table in tables.items():
        yield from _settings(table, f"{before}{key}.")


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in schema:
        return "a table"
    if "anyOf" in schema:
        return " or ".join("nothing" if one.get("type") == "null" else _allowed(one) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(json.dumps, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{'; '.join(_allowed(item) for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"a list of {_allowed(schema['items'])}"
    bounds = {
        "from": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "to": schema.get("maximum"),
        "below": schema.get("exclusiveMaximum"),
    }
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    said = [f"{word} {'2^63' if bound == 2**63 else bound}" for word, bound in bounds.items() if bound is not None]
    return " ".join([words.get(schema.get("type", ""), "anything"), *said])


def _show(settings: list[dict[str, Any]]) -> None:
    table = ""
    for setting in settings:
        within, _, key = setting["setting"].rpartition(".")
        if within != table:
            click.echo(f"{chr(10) if table else ''}[{within}]")
            table = within
        value = "not set" if setting["value"] is None else f"= {json.dumps(setting['value'], ensure_ascii=False)}"
        click.echo(f"{key} {value}")
        if setting["meaning"]:
            click.echo(_wrapped(setting["meaning"], first="    ", indent=4))
        click.echo(_wrapped(f"Allowed: {setting['allowed']}.", first="    ", indent=4))


def _wrapped(text: str, *, first: str, indent: int) -> str:
    width = max(50, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
