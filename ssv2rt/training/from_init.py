"""`model.from_init`: the network and the clips of initial weights, for a recipe that fine-tunes whatever it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import parse_recipe
from ssv2rt.core.recipes import Clip, Model, Recipe
from ssv2rt.core.sections import validated
from ssv2rt.models.load_weights import weights_of_run
from ssv2rt.published.catalog import PUBLISHED

_OWN = {
    "model": {"init", "inflate", "dropout", "drop_path", "checkpointing", "from_init"},
    "clip": {"views"},
}
"""Settings that a network can be trained with whatever they were before, and so stay those of the recipe."""
_INFLATED = {"resnet18": "resnet3d18-pool", "resnet50": "resnet3d50-pool", "resnet101": "resnet3d101-pool"}
"""The 3D networks that ImageNet's weights are inflated to."""


def follow_init(recipe: Recipe, given: frozenset[str] = frozenset()) -> tuple[Recipe, str]:
    """Gives a recipe with `model.from_init` the network and the clips of its `model.init`.

    Args:
        recipe: returned as it is if it has no `model.from_init`.
        given: keys such as `clip.frames` of settings that stay.

    Returns:
        The recipe with `model.from_init = false`, and what it takes over, as text; empty if it takes nothing.

    Raises:
        UsageError: the recipe has no initial weights.
        UserError: the run of the initial weights has no checkpoint.
    """
    if not recipe.model.from_init:
        return recipe, ""
    if not recipe.model.init:
        raise UsageError(
            "this recipe fine-tunes a network, and needs its weights: give --init a run, a file or a published network "
            f"({', '.join(PUBLISHED)})"
        )
    there = _settings_of(recipe.model.init)
    found: dict[str, dict[str, Any]] = {}
    for section, values in zip(("model", "clip"), there, strict=True):
        own = {*_OWN[section], *(key.partition(".")[2] for key in given if key.startswith(f"{section}."))}
        found[section] = {key: value for key, value in values.items() if key not in own}
    model = validated(Model, {**recipe.model.model_dump(), **found["model"], "from_init": False})
    clip = validated(Clip, {**recipe.clip.model_dump(), **found["clip"]})
    text = f"network and clips of '{recipe.model.init}': {model.name}, {clip.frames} frames of {clip.size} pixels"
    return recipe.model_copy(update={"model": model, "clip": clip}), text if any(found.values()) else ""


def _settings_of(source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `[model]` and `[clip]` that weights were trained with; empty where nothing tells."""
    path = weights_of_run(source) or Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("recipe")
        except (SafetensorError, OSError):
            text = None  # reading the weights says what is wrong
        if text:
            recipe = parse_recipe(text, path)
            return recipe.model.model_dump(), recipe.clip.model_dump()
    if path.is_file():
        return {}, {}
    if source in _INFLATED:
        return {"name": _INFLATED[source]}, {}
    if (entry := PUBLISHED.get(source)) is None:
        return {}, {}
    return entry.model.model_dump(), entry.clip.model_dump()
