"""Saves and loads weights as safetensors files, with label names, recipe and epoch in the header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, Json, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.recipe_files import dump_recipe, parse_recipe
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A model read from a checkpoint, in evaluation mode, on the CPU, in fp32."""

    model: ClipModel
    labels: tuple[str, ...]
    recipe: Recipe
    epoch: int
    path: Path
    """The weights file."""


def save_weights(path: Path, model: ClipModel, *, labels: tuple[str, ...], recipe: Recipe, epoch: int) -> None:
    """Writes a model's weights, with its class names in order, the recipe of its training, and the epoch.

    Equal arguments give equal bytes: safetensors writes its metadata in random order, so the header is written anew.
    """
    metadata = {"labels": json.dumps(labels), "recipe": dump_recipe(recipe), "epoch": str(epoch)}
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    content = memoryview(save(weights, metadata))
    end = 8 + int.from_bytes(content[:8], "little")  # the format: length of the header, header in JSON, tensors
    header = json.dumps(json.loads(bytes(content[8:end])) | {"__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors are aligned to 8 bytes
    with path.open("wb") as file:  # save_file makes files that only their owner may read
        file.writelines((len(header).to_bytes(8, "little"), header, content[end:]))


def load_trained(run: Run, which: str = "best") -> TrainedModel:
    """Loads the model of a run's `best` or `last` checkpoint.

    Raises:
        UserError: the run has no such checkpoint, it cannot be read, or the recipe of the run has changed since.
    """
    path = run.checkpoints / which / WEIGHTS
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no '{which}' checkpoint yet; let `ssv2rt train` finish an epoch")
    saved = load_checkpoint(path, "train again")
    recipe = run.recipe()
    if changed := next(_changes(saved.recipe, recipe), ""):
        raise UserError(
            f"{run.recipe_file} is not what '{path}' was trained with: {changed}; change it back, or train again"
        )
    return replace(saved, recipe=recipe)


def load_checkpoint(path: Path, fix: str = "get it again") -> TrainedModel:
    """Loads a model from a file of `save_weights` alone.

    Raises:
        UserError: it cannot be read, or is no such file; `fix` says what to do.
    """
    try:
        with safe_open(path, "pt") as file:
            header = _Header.model_validate(file.metadata())
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, ValidationError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint of ssv2rt, or damaged ({one_line(error)}); {fix}") from None
    recipe = parse_recipe(header.recipe, path)
    model = build_model(recipe.model, len(header.labels))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit its recipe: {first}") from None
    return TrainedModel(model.eval(), header.labels, recipe, header.epoch, path)


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the header of `save_weights`."""
    try:
        with safe_open(path, "pt") as file:
            return {"labels", "recipe", "epoch"} <= (file.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return False


class _Header(BaseModel):
    """The metadata of a weights file."""

    labels: Json[Annotated[tuple[str, ...], Field(min_length=1)]]
    recipe: str
    epoch: NonNegativeInt


def _changes(saved: Recipe, current: Recipe) -> Iterator[str]:
    """Settings of the network and of its clips that differ, each as text."""
    for section, unimportant in (("model", {"init", "inflate", "checkpointing"}), ("clip", {"views", "average"})):
        now = getattr(current, section).model_dump()
        for key, value in getattr(saved, section).model_dump().items():
            if key not in unimportant and value != now[key]:
                yield f"{section}.{key} was {value}, and is {now[key]}"
