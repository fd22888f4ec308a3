"""Checkpoints: `checkpoints/epoch-0007/`, with `last` and `best` pointing to two of them.

Weights are safetensors, with label names and recipe in the header; the rest of the state is read with
`weights_only=True`. A checkpoint appears whole, and an older one goes only after the pointers have moved on. One that is
written within an epoch says after how many steps: `epoch-0008-step-000120`.
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
FREE = ("data", "train.checkpoint_minutes", "train.compile", "train.tensorboard")
"""Settings that a run may be continued with in another way, since they change nothing that it computes."""


_DAMAGED = (
    *(OSError, RuntimeError, KeyError, IndexError, ValueError, EOFError, TypeError, AttributeError),
    *(pickle.UnpicklingError, struct.error),
)
"""What torch raises at a file that is no checkpoint."""


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
    """Writes a checkpoint, and makes it `last`, and `best` if it is.

    Args:
        run: where to.
        model: its weights are saved as they are.
        state: what else is needed to go on; must hold 'epoch', how many are complete.
        labels: class names, in order.
        recipe: the settings of the run.
        best: whether no earlier checkpoint was better.
        step: of the next epoch, if that has begun.
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
    """The state of a run's last checkpoint.

    Raises:
        UserError: there is none, it is damaged, or the run's recipe has been changed since.
    """
    path = run.checkpoints / "last" / STATE
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no checkpoint to go on from; start it anew with `ssv2rt train`")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = Recipe.model_validate_json(state["recipe"])
    except _DAMAGED as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of ssv2rt, or damaged ({reason}); train again") from None
    changed = differences(before, recipe)
    if changed:
        raise UserError(
            f"the checkpoint of '{run.path}' does not fit its recipe: {'; '.join(changed)}; "
            f"change it back in '{run.recipe_file}', or start a new run"
        )
    assert isinstance(state, dict)
    return state


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Settings that differ and matter, like `train.epochs was 7, and is 8`."""
    found = []
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    for section, settings in old.items():
        for key, value in settings.items():
            name = f"{section}.{key}"
            if section not in FREE and name not in FREE and value != new[section][key]:
                found.append(f"{name} was {value}, and is {new[section][key]}")
    return found
