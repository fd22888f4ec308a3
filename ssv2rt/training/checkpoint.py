"""Checkpoints in `checkpoints/epoch-0007/`; the symbolic links `last` and `best` point to the two that are kept.

The weights are a safetensors file with label names and recipe in its header. The rest of the state is in `state.pt`, which is
loaded with `weights_only=True`. A checkpoint is written atomically, and older ones are removed only after the links have been
moved. A checkpoint within an epoch has the number of steps in its name: `epoch-0008-step-000120`.
"""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from ssv2rt.core.atomic_files import atomic_folder, remove_tree, replace_link
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.weights import WEIGHTS, save_weights

STATE = "state.pt"
CHANGEABLE_SETTINGS = ("data", "train.checkpoint_minutes", "train.compile", "train.tensorboard")
"""Settings that may change on resume, since they do not affect the result."""


_LOAD_ERRORS = (
    *(OSError, RuntimeError, KeyError, IndexError, ValueError, EOFError, TypeError, AttributeError),
    *(pickle.UnpicklingError, struct.error),
)
"""What `torch.load` can raise for a file that is not a checkpoint."""


def save_checkpoint(
    run: Run,
    model: ClipModel,
    state: dict[str, Any],
    *,
    labels: tuple[str, ...],
    recipe: Recipe,
    best: bool,
    step: int = 0,
) -> Path:
    """Writes a checkpoint, points `last` (and `best`, if it is the best) to it, and removes all others.

    Args:
        run: the run to write to.
        model: the model to evaluate and export; its weights are saved.
        state: everything else needed to resume. Must have "epoch", the number of complete epochs.
        labels: class names, in order.
        recipe: the settings of the run.
        best: whether no earlier checkpoint was better.
        step: number of steps done in the next epoch; 0 at the end of an epoch.

    Returns:
        The folder of the checkpoint.
    """
    name = f"epoch-{state['epoch']:04}" if not step else f"epoch-{state['epoch'] + 1:04}-step-{step:06}"
    folder = run.checkpoints / name
    with atomic_folder(folder) as temporary:
        save_weights(temporary / WEIGHTS, model, labels=labels, recipe=recipe, epoch=state["epoch"])
        torch.save(state | {"recipe": recipe.model_dump_json()}, temporary / STATE)
    if best:
        replace_link(run.checkpoints / "best", folder.name)
    replace_link(run.checkpoints / "last", folder.name)
    kept = {os.readlink(link) for link in (run.checkpoints / "last", run.checkpoints / "best") if link.is_symlink()}
    for old in run.checkpoints.glob("epoch-*"):
        if old.name not in kept:
            remove_tree(old)
    return folder


def load_state(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Loads the state of a run's last checkpoint.

    Raises:
        UserError: there is no checkpoint, it is damaged, or the recipe of the run has changed since.
    """
    path = run.checkpoints / "last" / STATE
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no checkpoint to resume from; start a new run with `ssv2rt train`")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = Recipe.model_validate_json(state["recipe"])
    except _LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of ssv2rt, or damaged ({reason}); train again") from None
    changed = differences(saved, recipe)
    if changed:
        raise UserError(
            f"the checkpoint of '{run.path}' does not match the recipe: {'; '.join(changed)}; "
            f"change the recipe back in '{run.recipe_file}', or start a new run"
        )
    assert isinstance(state, dict)
    return state


def differences(saved: Recipe, current: Recipe) -> list[str]:
    """Settings that differ and affect the result, each as text like `train.epochs was 7, and is 8`."""
    found = []
    old, new = saved.model_dump(mode="json"), current.model_dump(mode="json")
    for section, settings in old.items():
        for key, value in settings.items():
            name = f"{section}.{key}"
            if section not in CHANGEABLE_SETTINGS and name not in CHANGEABLE_SETTINGS and value != new[section][key]:
                found.append(f"{name} was {value}, and is {new[section][key]}")
    return found
