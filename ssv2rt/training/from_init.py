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

_OWN = {
    "model": {"init", "inflate", "dropout", "drop_path", "checkpointing", "from_init"},
    "clip": {"views"},
}
"""Settings that a network can be trained with whatever they were before, and so stay those of the recipe."""
_TORCHVISION = {"frames": 16, "size": 112, "center_crop": 0.875}
_PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: ({"name": name}, _TORCHVISION) for name in ("r3d_18", "mc3_18", "r2plus1d_18")},
    "resnet18": ({"name": "resnet3d18-pool"}, {}),
    "resnet50": ({"name": "resnet3d50-pool"}, {}),
    "resnet101": ({"name": "resnet3d101"}, {}),
}
"""Settings of `[model]` and `[clip]` for published weights."""


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
            f"({', '.join(_PUBLISHED)})"
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
    return _PUBLISHED.get(source, ({}, {})) if not path.is_file() else ({}, {})
