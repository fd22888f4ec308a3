"""Describes recipes: which ones there are, and each setting of one with its meaning, allowed values and default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ssv2rt.core.errors import UsageError, suggest
from ssv2rt.core.recipe_files import load_engine_recipe, load_recipe, recipe_folders, recipe_names
from ssv2rt.core.recipes import EngineRecipe, Recipe

KINDS: dict[str, Literal["pipelines", "engines"]] = {"training": "pipelines", "engine": "engines"}
"""The kinds of recipes, and the folder of each."""
_TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text"}


def list_recipes() -> list[dict[str, str]]:
    """Name (`recipe`), `kind`, and first comment line (`about`) of each recipe."""
    return [
        {"recipe": name, "kind": kind, "about": _first_comment(folder, name)}
        for kind, folder in KINDS.items()
        for name in recipe_names(folder)
    ]


def describe_recipe(name: str) -> list[dict[str, Any]]:
    """Each `setting` of a training or engine recipe with its `value`, `meaning`, `allowed` values and `default`.

    Args:
        name: name of a recipe of either kind, or path of a .toml file.

    Raises:
        UsageError: there is no such recipe, or it is invalid.
    """
    return list(_describe(_load(name)))


def _first_comment(folder: Literal["pipelines", "engines"], name: str) -> str:
    path = next(path for place in recipe_folders(folder) if (path := place / f"{name}.toml").is_file())
    with path.open(encoding="utf-8", errors="replace") as lines:
        comment = next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")
    return comment.removeprefix(f"{name}: ")


def _load(name: str) -> BaseModel:
    if name.endswith(".toml") or "/" in name:
        return load_engine_recipe(name) if _is_engine_recipe(Path(name)) else load_recipe(name)
    training, engine = recipe_names("pipelines"), recipe_names("engines")
    if name not in (*training, *engine):
        raise UsageError(f"no recipe '{name}'{suggest(name, [*training, *engine])}")
    return load_recipe(name) if name in training else load_engine_recipe(name)


def _is_engine_recipe(path: Path) -> bool:
    """Whether a file has a table that only engine recipes have."""
    tables = tuple(f"[{table}" for table in EngineRecipe.model_fields if table not in Recipe.model_fields)
    try:
        return any(line.startswith(tables) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False  # `load_recipe` reports the error


def _describe(section: BaseModel, before: str = "") -> Iterator[dict[str, Any]]:
    """The settings of a section, then those of the sections in it."""
    fields = type(section).model_fields
    schema = type(section).model_json_schema()["properties"]
    values = {key: getattr(section, key) for key in fields}
    sections = {key: value for key, value in values.items() if isinstance(value, BaseModel)}
    for key in (key for key in values if key not in sections):
        yield {
            "setting": before + key,
            "value": values[key],
            "meaning": " ".join((fields[key].description or "").split()),
            "allowed": _allowed(schema[key]),
            "default": fields[key].default,
        }
    for key, inner in sections.items():
        yield from _describe(inner, f"{before}{key}.")


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in schema:
        return "a table"
    if "anyOf" in schema:
        return " or ".join("not set" if one.get("type") == "null" else _allowed(one) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(json.dumps, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{'; '.join(_allowed(item).replace(', ', ' or ') for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"a list; each entry is {_allowed(schema['items'])}"
    above = "exclusiveMinimum" in schema
    bounds = {
        "from": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "and at most" if above else "to": schema.get("maximum"),
        "and below" if above else "to below": schema.get("exclusiveMaximum"),
    }
    ranges = [f"{word} {'2^63' if bound == 2**63 else bound}" for word, bound in bounds.items() if bound is not None]
    return " ".join([_TYPES.get(schema.get("type", ""), "anything"), *ranges])
