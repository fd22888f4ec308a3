"""Checkpoints: `checkpoints/epoch-0007/`, with `last` and `best` pointing to two of them.

Weights are safetensors, with label names and recipe in the header; the rest of the state is read with
`weights_only=True`. A checkpoint appears whole, and an older one goes only after the pointers have moved on.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ssv2rt.models.clipmodel import ClipModel
from ssv2rt.models.weights import WEIGHTS, save_weights
from ssv2rt.recipes import Recipe
from ssv2rt.runs import Run, point_to, remove_tree, whole_folder

STATE = "state.pt"


def save_checkpoint(
    run: Run, model: ClipModel, state: dict[str, Any], *, labels: tuple[str, ...], recipe: Recipe, best: bool
) -> None:
    """Writes a checkpoint, and makes it `last`, and `best` if it is.

    Args:
        run: where to.
        model: its weights are saved as they are.
        state: what else is needed to go on; must hold 'epoch'.
        labels: class names, in order.
        recipe: the settings of the run.
        best: whether no earlier checkpoint was better.
    """
    folder = run.checkpoints / f"epoch-{state['epoch']:04}"
    with whole_folder(folder) as temporary:
        save_weights(temporary / WEIGHTS, model, labels=labels, recipe=recipe, epoch=state["epoch"])
        torch.save(state, temporary / STATE)
    if best:
        point_to(run.checkpoints / "best", folder.name)
    point_to(run.checkpoints / "last", folder.name)
    kept = {os.readlink(run.checkpoints / name) for name in ("last", "best")}
    for old in run.checkpoints.glob("epoch-*"):
        if old.name not in kept:
            remove_tree(old)
