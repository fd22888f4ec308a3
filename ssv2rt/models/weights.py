"""Saves and loads weights as safetensors files, with label names, recipe and epoch in the header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import dump_recipe
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
        UserError: the run has no such checkpoint, or it cannot be read.
    """
    path = run.checkpoints / which / WEIGHTS
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no '{which}' checkpoint yet; let `ssv2rt train` finish an epoch")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        labels = tuple(json.loads(header["labels"]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint of ssv2rt, or damaged ({error}); train again") from None
    recipe = run.recipe()
    model = build_model(recipe.model, len(labels))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit {run.recipe_file}: {first}") from None
    return TrainedModel(model.eval(), labels, recipe, int(header["epoch"]), path)
