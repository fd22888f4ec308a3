"""Experiment trackers: what else gets the lines of metrics.jsonl. `train.tracker` names one.

A tracker of your own is a function `module:function`, found as Python finds modules, or in the working directory:

    def my_tracker(run: Path, recipe: dict, update: int):
        '''Called once, when training starts or goes on after `update` optimizer steps, in the process of rank 0.'''
        return Mine()

    class Mine:
        def write(self, facts: dict[str, float], update: int) -> None: ...
        def close(self) -> None: ...

`facts` has the names of metrics.jsonl; those within another are joined, as in `validation/top1`. A tracker that fails while
training goes on is named once and left out from then on: training of days does not end for it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ssv2rt.core.errors import UsageError, UserError, one_line
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives metrics."""

    def write(self, facts: dict[str, float], update: int) -> None:
        """Takes one line of metrics, after `update` optimizer steps of the run."""

    def close(self) -> None:
        """Training has ended, in whatever way."""


Open = Callable[[Path, dict[str, Any], int], Tracker]
"""Folder of the run, its recipe, and the optimizer steps done so far."""


def open_trackers(run: Run, recipe: Recipe, update: int) -> list[Tracker]:
    """The trackers that a recipe wants.

    Raises:
        UsageError: `train.tracker` names no function.
        UserError: the tracker cannot be opened, such as for a missing package.
    """
    settings = recipe.train
    names = dict.fromkeys(["tensorboard"] if settings.tensorboard else [])
    names |= dict.fromkeys([settings.tracker] if settings.tracker else [])
    return [_open(name, run, recipe, update) for name in names]


def try_tracker(tracker: Tracker, call: Callable[[], None], then: str) -> bool:
    """Calls a method of a tracker. If that fails, which must not end training, warns and returns False.

    Args:
        tracker: named by its class in the warning.
        call: of its method.
        then: what follows from a failure, for the warning.
    """
    try:
        call()
    except Exception as error:  # a tracker may raise anything
        logger.warning(f"the tracker {type(tracker).__name__.strip('_')} failed{then}: {_in_words(error)}")
        return False
    return True


def _in_words(error: Exception) -> str:
    """An exception of another program, whose text alone may be just a key."""
    return f"{type(error).__name__}: {one_line(error)}"


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flattens nested dicts; nested names are joined as `group/name`."""
    flat: dict[str, float] = {}
    for name, value in facts.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": float(value)}
    return flat


def _open(name: str, run: Run, recipe: Recipe, update: int) -> Tracker:
    try:
        tracker = _function(name)(run.path, recipe.model_dump(mode="json"), update)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"train.tracker = '{name}' cannot be imported: {one_line(error)}{_INSTALL.get(name, '')}"
        ) from None
    except Exception as error:  # a tracker may raise anything
        raise UserError(
            f"train.tracker = '{name}' failed to start: {_in_words(error)}; mend it, or leave it out"
        ) from None
    if not all(callable(getattr(tracker, method, None)) for method in ("write", "close")):
        raise UsageError(
            f"train.tracker = '{name}' gave {type(tracker).__name__}, which lacks write(facts, update) or close(); return an "
            f"object that has both"
        )
    return tracker


def _function(name: str) -> Open:
    if name in _KNOWN:
        return _KNOWN[name]
    module, _, function = name.partition(":")
    if not module or not function:
        raise UsageError(f"train.tracker = '{name}': give {', '.join(_KNOWN)}, or a function as module:function")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise UsageError(f"train.tracker = '{name}': module '{module}' has no function '{function}'")
    return found


class _TensorBoard:
    def __init__(self, run: Path, recipe: dict[str, Any], update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run / "tensorboard", purge_step=update + 1 if update else None)

    def write(self, facts: dict[str, float], update: int) -> None:
        for name, value in facts.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, update)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the project `ssv2rt`, or of WANDB_PROJECT, under the name of the run's folder, which goes on when resumed."""

    def __init__(self, run: Path, recipe: dict[str, Any], update: int) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "ssv2rt")
        identity = "".join(letter if letter.isalnum() else "-" for letter in run.name)
        self._run = wandb.init(
            project=project, name=run.name, id=identity, resume="allow", dir=str(run), config=recipe, reinit=True
        )

    def write(self, facts: dict[str, float], update: int) -> None:
        self._run.log(facts, step=update)

    def close(self) -> None:
        self._run.finish()


_KNOWN: dict[str, Open] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
_INSTALL = {name: f"; install it with `pip install 'ssv2rt[{name}]'`" for name in _KNOWN}
