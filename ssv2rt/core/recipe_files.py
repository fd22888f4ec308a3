"""Reads recipes from TOML files, applies overrides of the form `--set section.key=value`, and writes recipes.

A recipe is given by the path of a `.toml` file, or by name. A name is looked up in `./pipelines` or `./engines`, then in the
repository that this package runs from, then in the installed package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, ValidationError

from ssv2rt.core.errors import UsageError, one_line, suggest
from ssv2rt.core.recipes import EngineRecipe, Recipe
from ssv2rt.core.sections import explain

R = TypeVar("R", bound=BaseModel)


def default_recipe(device: str) -> str:
    """Name of the training recipe for data without a recipe's name.

    Args:
        device: type of the device that trains, "cuda" or "cpu".
    """
    return "ssv2-resnet3d18" if device == "cuda" else "small"


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Loads a training recipe by name or by path of a .toml file, and applies `section.key=value` overrides.

    Raises:
        UsageError: there is no such recipe, a key does not exist, or a value is out of range.
    """
    return _load("pipelines", name, overrides, Recipe)


def load_engine_recipe(name: str, overrides: tuple[str, ...] = ()) -> EngineRecipe:
    """Like `load_recipe`, for an engine recipe."""
    return _load("engines", name, overrides, EngineRecipe)


def read_otherwise(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """A trained network's recipe with other settings for evaluation, given as `section.key=value` overrides.

    Raises:
        UsageError: a key is not one of `[clip]`, `[data]`, train.batch_size and train.precision, or as `load_recipe`.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not key.startswith(("clip.", "data.")) and key not in ("train.batch_size", "train.precision"):
            raise UsageError(
                f"setting {override}: evaluation takes clip.*, data.*, train.batch_size and train.precision; the rest "
                f"belongs to the training that is over"
            )
    return _checked(
        Path("the run's recipe"), _plain(recipe.model_dump(mode="json", exclude_none=True)), overrides, Recipe
    )


def recipe_of_network(model: str, size: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe for a network and a clip size, such as "16x112" (frames x pixels), with `section.key=value` overrides.

    Raises:
        UsageError: the size is not written like that, or as `load_recipe`.
    """
    frames, _, pixels = size.partition("x")
    if not (frames.isdecimal() and pixels.isdecimal()):
        raise UsageError(f"--size {size}: write frames x pixels, like 16x112")
    changes = (f"model.name={model}", f"clip.frames={frames}", f"clip.size={pixels}", *overrides)
    return load_recipe("ssv2-resnet3d18", changes)


def dump_recipe(recipe: BaseModel) -> str:
    """A recipe as TOML with every setting written out. Loading it gives an equal recipe."""
    return tomlkit.dumps(_plain(recipe.model_dump(mode="json", exclude_none=True)))


def recipe_folders(kind: Literal["pipelines", "engines"]) -> list[Path]:
    """Folders to search for recipes of a kind, in order."""
    package = Path(__file__).parents[1]
    candidates = [Path(kind), package.parent / kind, package / "shipped" / kind]
    return [folder for folder in candidates if folder.is_dir() and any(folder.glob("*.toml"))]


def recipe_names(kind: Literal["pipelines", "engines"]) -> list[str]:
    """Names of all recipes of a kind, sorted."""
    return sorted({path.stem for folder in recipe_folders(kind) for path in folder.glob("*.toml")})


def _load(kind: Literal["pipelines", "engines"], name: str, overrides: tuple[str, ...], model: type[R]) -> R:
    path = _find(kind, name)
    try:
        settings = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file: {one_line(error)}") from None
    return _checked(path, settings, overrides, model)


def parse_recipe(text: str, path: Path) -> Recipe:
    """A training recipe from the text of `dump_recipe` that is stored in the file `path`.

    Raises:
        UsageError: it is something else.
    """
    try:
        settings = tomlkit.parse(text).unwrap()
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: its recipe is not TOML: {one_line(error)}") from None
    return _checked(path, settings, (), Recipe)


def _checked(path: Path, settings: dict[str, Any], overrides: tuple[str, ...], model: type[R]) -> R:
    for override in overrides:
        _override(settings, override)
    try:
        # Pydantic's strict mode for JSON accepts arrays as tuples, but not true as 1.
        return model.model_validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        given = [override.partition("=")[0].strip() for override in overrides]
        # An error of a whole section is one of settings that do not go together.
        from_override = any(key.startswith(name) or name.startswith(f"{key}.") for name in given)
        raise UsageError(f"{'' if from_override else f'{path}: '}{explain(error, model)}") from None


def _find(kind: Literal["pipelines", "engines"], name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(
                f"no recipe file '{name}'; give the path of a .toml file, or a name: {', '.join(recipe_names(kind))}"
            )
        return path
    for folder in recipe_folders(kind):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UsageError(f"no recipe '{name}'{suggest(name, recipe_names(kind))}")


def _override(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) < 2 or len(override.splitlines()) > 1:
        raise UsageError(f"setting {override!r}: write section.key=value, such as train.epochs=10")
    try:
        value = tomlkit.parse(f"value = {text}").unwrap()["value"]
    except tomlkit.exceptions.ParseError:
        value = text.strip()  # a bare word is a string without quotes
    table = settings
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"setting {override}: '{part}' is a value, not a section")
    table[parts[-1]] = value


def _plain(value: Any) -> Any:
    """Turns tuples into lists, since TOML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
