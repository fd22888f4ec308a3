"""Checkpoints in `checkpoints/epoch-0007/`; the symbolic links `last` and `best` point to the two that are kept.

The weights are a safetensors file with label names and recipe in its header. The rest of the state is in `state.pt`, which is
loaded with `weights_only=True`. A checkpoint is written atomically, and older ones are removed only after the links have been
moved. A checkpoint within an epoch has the number of steps in its name: `epoch-0008-step-000120`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from ssv2rt.core.atomic_files import atomic_folder, remove_tree, replace_link
from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.weights import WEIGHTS, save_weights

STATE = "state.pt"
CHANGEABLE_SETTINGS = (
    "data",
    "train.checkpoint_minutes",
    "train.compile",
    "train.log_every",
    "train.tensorboard",
    "train.tracker",
)
"""Settings that may change on resume, since they do not affect the result."""


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
        content = io.BytesIO()  # torch.save turns a full disk into an error of its own
        torch.save(state | {"recipe": recipe.model_dump_json()}, content)
        (temporary / STATE).write_bytes(content.getbuffer())
    if best:
        replace_link(run.checkpoints / "best", folder.name)
    replace_link(run.checkpoints / "last", folder.name)
    remove_old_checkpoints(run)
    return folder


def remove_old_checkpoints(run: Run) -> None:
    """Removes all checkpoints but the last and the best."""
    kept = {os.readlink(link) for link in (run.checkpoints / "last", run.checkpoints / "best") if link.is_symlink()}
    for old in run.checkpoints.glob("epoch-*"):
        if kept and old.name not in kept:
            remove_tree(old)


class RandomState(BaseModel):
    """The random state of one process."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)

    cpu: torch.Tensor
    cuda: torch.Tensor | None


class Best(BaseModel):
    """The fields of the best `Evaluation`, without its confusion matrix."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    top1: float
    top5: float
    loss: float
    clips: int
    bad: int
    mean_class_accuracy: float | None = None


class State(BaseModel):
    """What state.pt holds. Processes are those that train together."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)

    epoch: NonNegativeInt
    """Number of complete epochs."""
    step: NonNegativeInt
    """Number of batches done in the next one."""
    update: NonNegativeInt
    """Number of optimizer steps in all."""
    bad: NonNegativeInt
    """Number of training clips that could not be decoded; in old checkpoints only those of rank 0."""
    best: Best | None
    labels: list[str]
    clips: int
    """Number of training clips."""
    processes: PositiveInt
    data: str = ""
    """See `Split.digest`; empty in checkpoints of earlier versions."""
    model: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None
    """EMA weights."""
    optimiser: dict[str, Any]
    scaler: dict[str, int | float]  # whole numbers stay what they are, as the scaler needs them
    random: list[RandomState]
    """Of each process."""
    tally: list[torch.Tensor]
    """Running metrics of each process."""
    recipe: str
    """JSON."""

    @model_validator(mode="after")
    def _check(self) -> State:
        if not self.processes == len(self.random) == len(self.tally):
            raise ValueError("not one random state for each process")
        if bool(self.epoch) != bool(self.best):
            raise ValueError("no best epoch")
        return self


def read_state(run: Run) -> State:
    """The state of a run's last checkpoint.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    path = run.checkpoints / "last" / STATE
    if not path.is_file():
        raise UserError(f"run '{run.path}' has no checkpoint to resume from; start a new run with `ssv2rt train`")
    try:
        state = State.model_validate(torch.load(path, map_location="cpu", weights_only=True))
        Recipe.model_validate_json(state.recipe)
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(f"{path}: not a checkpoint of ssv2rt, or damaged ({one_line(error)}); train again") from None
    return state


def load_state(run: Run, recipe: Recipe, given: frozenset[str] = frozenset()) -> State:
    """Loads the state of a run's last checkpoint, to continue the run.

    Args:
        run: the run.
        recipe: with which it is to be continued.
        given: settings in it that come from the command line, such as `train.epochs`, for the message.

    Raises:
        UserError: as `read_state`, or the recipe of the run has changed since.
    """
    state = read_state(run)
    if changed := differences(Recipe.model_validate_json(state.recipe), recipe):
        by_option = [key for key in changed if key in given]
        fixes = [f"leave out {', '.join(by_option)}"] if by_option else []
        fixes += [f"change the recipe back in '{run.recipe_file}'"] if len(by_option) < len(changed) else []
        fixes += [f"continue it with `--resume {run.name} --epochs N`"] if "train.epochs" in changed else []
        raise UserError(
            f"the checkpoint of '{run.path}' does not match the recipe: {'; '.join(changed.values())}; "
            f"{', '.join(fixes)}, or start a new run"
        )
    return state


def differences(saved: Recipe, current: Recipe) -> dict[str, str]:
    """Settings that differ and affect the result, each with a text like `train.epochs was 7, and is 8`.

    A recipe that continues the saved one for more epochs, after those that it had, does not differ in this.
    """
    found = {}
    old, new = saved.model_dump(mode="json"), current.model_dump(mode="json")
    ignored = {*CHANGEABLE_SETTINGS, *(("train.epochs", "train.continued") if _continues(saved, current) else ())}
    for section, settings in old.items():
        for key, value in settings.items():
            name = f"{section}.{key}"
            if section not in ignored and name not in ignored and value != new[section][key]:
                found[name] = f"{name} was {value}, and is {new[section][key]}"
    return found


def _continues(saved: Recipe, current: Recipe) -> bool:
    """Whether a recipe has the epochs of another and, after them, more."""
    before, after = saved.train, current.train
    return after.continued[: len(before.continued) + 1] == (*before.continued, before.epochs)
