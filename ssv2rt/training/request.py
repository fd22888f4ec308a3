"""What a call of `train` or `evaluate` asks for, checked before anything is read, and how it is carried out."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ssv2rt.core.errors import UsageError, UserError, out_of_memory_as_user_error
from ssv2rt.core.hardware import choose_device, choose_precision
from ssv2rt.core.locks import exclusive
from ssv2rt.core.recipe_files import default_recipe, load_recipe, read_otherwise
from ssv2rt.core.recipes import Data, Recipe, with_views
from ssv2rt.core.run_folders import RUNS, Run, check_run_name, create_run, find_run
from ssv2rt.dataset.class_warnings import warn_about_classes
from ssv2rt.dataset.classes import for_classes, labeled
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.prepare import override_root, prepare
from ssv2rt.models.weights import TrainedModel, load_trained
from ssv2rt.published.load import to_be_downloaded
from ssv2rt.training.check_setup import check_classes
from ssv2rt.training.determinism import set_deterministic
from ssv2rt.training.distributed import Group, process_group
from ssv2rt.training.evaluate import Evaluation, Record, evaluate
from ssv2rt.training.fit_to_data import fit_to_data, set_by, with_epochs
from ssv2rt.training.from_init import follow_init
from ssv2rt.training.plan import training_plan
from ssv2rt.training.trainer import Trainer

logger = logging.getLogger(__name__)

_FEW = 20
"""Fewer validation clips than this are said to be few."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The options of `train`, under the names that the command has them.

    Raises:
        UsageError: `resume` together with an option that the run has already decided.
    """

    recipe: str | None = None
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    name: str = ""
    init: str | None = None
    resume: str | None = None
    """A run, or "latest"."""

    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.resume and (self.recipe or self.name or self.init):
            options = (("--name", self.name), ("--init", self.init))
            given = f"recipe '{self.recipe}'" if self.recipe else next(f"{o} {value}" for o, value in options if value)
            raise UsageError(
                f"--resume {self.resume} with {given}: a run continues with its own recipe; leave out one of the two"
            )
        if self.epochs and "train.epochs" in set_by(self.overrides):
            raise UsageError("--epochs and --set train.epochs are the same setting; leave out one of the two")

    def recipe_name(self, device: torch.device) -> str:
        """The recipe: by default one for the data, and for a machine with or without a GPU."""
        if self.recipe or not self.data:
            return self.recipe or "demo"
        return default_recipe(device.type)

    def run_stem(self, device: torch.device) -> str:
        """Name of a new run, without the time. A run from another run's recipe is named after that run."""
        path = Path(self.recipe_name(device))
        return path.parent.name if path.name == "recipe.toml" else path.stem


@dataclass(frozen=True)
class TrainedRun:
    """A finished training."""

    run: Run
    result: Evaluation
    """The evaluation of the best epoch."""
    manifest: Manifest
    data: Data


def train_as_requested(request: TrainRequest) -> TrainedRun | None:
    """Trains as a request says. Returns None in processes other than rank 0.

    Raises:
        UsageError: there is no such recipe, or a setting is out of range.
        UserError: there is no such run or data, or another process trains the run; or as `Trainer` and `Trainer.fit`.
    """
    with process_group() as group, ExitStack() as locks:

        def lock(path: Path) -> None:
            group.from_rank_zero(lambda: locks.enter_context(exclusive(path, "training")))

        _check_same_options(request, group)
        resumed = _run_to_resume(request, group)
        if request.name:
            check_run_name(request.name)
        if resumed or request.name:
            lock(resumed.path if resumed else RUNS / request.name)
        trainer = _trainer(request, group, resumed)
        run = resumed or group.from_rank_zero(lambda: create_run(request.run_stem(group.device), request.name))
        if not (resumed or request.name):
            lock(run.path)
        try:
            result = trainer.fit(run)
        except BaseException:
            if group.is_rank_zero:
                run.remove_unless_started()
            raise
        return TrainedRun(run, result, trainer.manifest, trainer.recipe.data) if group.is_rank_zero else None


def plan_as_requested(request: TrainRequest) -> dict[str, object] | None:
    """What `train_as_requested` would do and need; see `training_plan`. Returns None in processes other than rank 0."""
    with process_group() as group:
        _check_same_options(request, group)
        trainer = _trainer(request, group, _run_to_resume(request, group), only_plans=True)
        return training_plan(trainer) if group.is_rank_zero else None


def _check_same_options(request: TrainRequest, group: Group) -> None:
    """Raises UserError unless all processes were started with the same options. The data may lie at different paths."""
    for rank, other in enumerate(group.gather(request)):
        for name, value in vars(other).items():
            if name != "data" and value != (own := getattr(request, name)):
                error = UserError(
                    f"the processes that train together have different options: {name.replace('overrides', 'set')} is "
                    f"{own!r} in rank {group.rank} and {value!r} in rank {rank}; start all with the same"
                )
                raise group.shared(error)


def _run_to_resume(request: TrainRequest, group: Group) -> Run | None:
    """The run that a request resumes, which is on the machine of rank 0.

    Raises:
        UserError: there is none, or it was imported.
    """
    if not request.resume:
        return None
    name = None if request.resume == "latest" else request.resume
    found: Run | UserError
    try:
        found = find_run(name)
    except UserError as error:
        found = error
    outcomes = group.gather((found, socket.gethostname()))
    run, host = outcomes[0]
    if isinstance(run, UserError):
        elsewhere = [
            f"that of rank {rank} ({there})" for rank, (one, there) in enumerate(outcomes) if isinstance(one, Run)
        ]
        if elsewhere:
            run = UserError(
                f"the run to resume is not on the machine of rank 0 ({host}), but on {elsewhere[0]}; start torchrun with "
                f"--node-rank 0 on that machine, or copy the folder of the run"
            )
        raise group.shared(run)
    if run.source_file.is_file():
        raise UserError(
            f"run '{run.path}' was imported, and has no optimizer state to continue with; train from its weights with "
            f"`ssv2rt train {run.recipe_file} --init {run.name} --data DIR`"
        )
    return run


def _trainer(request: TrainRequest, group: Group, resumed: Run | None, *, only_plans: bool = False) -> Trainer:
    """A trainer that is ready to start, or to continue a run; for a plan, published weights need not be here."""

    def log(text: str) -> None:
        if text and group.is_rank_zero:
            logger.info(text)

    def here(recipe: Recipe) -> Recipe:
        """The recipe of rank 0 with the path that the data has on this machine."""
        return recipe.model_copy(update={"data": override_root(recipe.data, request.data)})

    given = set_by(request.overrides) | ({"train.epochs"} if request.epochs else set())
    # Rank 0 makes recipe and manifest. Other machines may have neither the recipe nor the run, and perhaps the manifest.
    recipe = here(group.from_rank_zero(lambda: _recipe(request, group, resumed)))
    if group.size > 1:
        group.from_rank_zero(lambda: bool(prepare(recipe.data)))
    manifest = prepare(recipe.data)
    group.meeting()
    if group.is_rank_zero:
        warn_about_classes(manifest)
    if resumed:
        trainer = Trainer(recipe, manifest, group, initialize_weights=False)
        trainer.resume(resumed, given)
        log(_going_on(trainer, resumed, request))
        return trainer

    def fitted() -> Recipe:
        training = manifest.split("train", recipe.data.max_bad)
        check_classes(training)
        followed, text = follow_init(recipe, given)
        log(text)
        original = load_recipe(request.recipe_name(group.device))
        found, text = fit_to_data(followed, len(training), processes=group.size, given=given, original=original)
        log(text)
        return found

    recipe = here(group.from_rank_zero(fitted))
    log(_few_validation_clips(manifest, recipe))
    weights = to_be_downloaded(recipe.model.init) if only_plans else None
    if weights:
        log(f"'{weights.name}' is not on this machine yet: training will download {weights.url}")
    return Trainer(recipe, manifest, group, initialize_weights=weights is None)


def _few_validation_clips(manifest: Manifest, recipe: Recipe) -> str:
    """That accuracy is coarse, if it is; else empty."""
    clips = len(manifest.split("validation", recipe.data.max_bad))
    if clips >= _FEW:
        return ""
    return (
        f"only {clips} validation clip{'s' if clips > 1 else ''}, so that each is {100 / clips:.0f} points of top-1; "
        f"`ssv2rt evaluate --data OTHER --split all` measures accuracy on others"
    )


def _recipe(request: TrainRequest, group: Group, resumed: Run | None) -> Recipe:
    """The recipe that a request names, or that of the run to continue, with the changes of the request."""
    name = str(resumed.recipe_file) if resumed else request.recipe_name(group.device)
    overrides = request.overrides
    if request.init:
        overrides = (*overrides, f"model.init={json.dumps(_lasting_name(request.init))}")
    recipe = load_recipe(name, overrides)
    if request.epochs and resumed:
        recipe = _continued(recipe, request.epochs, resumed)
    elif request.epochs:
        before, recipe = recipe, with_epochs(recipe, request.epochs, set_by(request.overrides))
        if recipe.train.schedule != before.train.schedule and group.is_rank_zero:
            logger.info(
                f"--epochs {request.epochs} leaves no epochs for the steps of the learning rate: it falls by a cosine "
                f"(train.schedule)"
            )
    recipe = recipe.model_copy(update={"data": override_root(recipe.data, request.data)})
    if request.data and not (resumed or request.recipe) and group.device.type != "cuda":
        logger.info(
            f"no recipe is named and there is no GPU, so it is '{name}', whose network trains on a CPU; others: ssv2rt recipes"
        )
    return recipe


def _lasting_name(init: str) -> str:
    """The name of a run that stays right: `latest` will be another one."""
    return find_run(None).name if init == "latest" and (RUNS / init).is_dir() else init


def _continued(recipe: Recipe, epochs: int, run: Run) -> Recipe:
    """The recipe of a run with more epochs, which have a schedule of their own after those that it has."""
    settings = recipe.train
    if epochs < settings.epochs:
        raise UsageError(f"--epochs {epochs}: run '{run.path}' has {settings.epochs} already; give more")
    if epochs == settings.epochs:  # such as the same command again
        return recipe
    changes = {"epochs": epochs, "continued": (*settings.continued, settings.epochs)}
    return recipe.model_copy(update={"train": settings.model_copy(update=changes)})


def _going_on(trainer: Trainer, run: Run, request: TrainRequest) -> str:
    """What resuming a run will do, as a line; empty if it only finishes what was interrupted."""
    settings = trainer.recipe.train
    if trainer.is_finished:
        return (
            f"run '{run.name}' is finished: {trainer.epoch} of {settings.epochs} epochs; `ssv2rt train --resume {run.name} "
            f"--epochs {settings.epochs + max(1, settings.epochs // 2)}` trains it longer"
        )
    if not (request.epochs and settings.continued):
        return ""
    start = settings.continued[-1]
    peak = trainer.schedule(start * trainer.optimizer_steps_per_epoch)
    return (
        f"run '{run.name}' goes on from epoch {trainer.epoch}: in epochs {start + 1} to {settings.epochs}, a cosine takes the "
        f"learning rate from {peak:.3g}, a tenth of its peak, to 0"
    )


Recorder = Callable[[TrainedModel, Manifest, str], AbstractContextManager[Record]]


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The options of `evaluate`, under the names that the command has them."""

    run: str | None = None
    split: str = "validation"
    data: Path | None = None
    checkpoint: str = "best"
    views: str | None = None
    overrides: tuple[str, ...] = ()


def evaluate_as_requested(
    request: EvaluateRequest, recorder: Recorder | None = None
) -> tuple[Run, TrainedModel, Evaluation]:
    """Evaluates a run's model as a request says. Classes of the data are matched with the model's by name.

    Args:
        request: the options.
        recorder: makes what records each batch from the model, the data and the name of the split.

    Returns:
        The run; the model, with the recipe by which its clips were read; and the result.

    Raises:
        UsageError: `views` or an override is invalid.
        UserError: there is no such run, checkpoint or data, or the model knows no class of the data; or as `evaluate`.
    """
    run = find_run(request.run)
    trained = load_trained(run, request.checkpoint)
    recipe = read_otherwise(trained.recipe, request.overrides)
    if request.views:
        recipe = recipe.model_copy(update={"clip": with_views(recipe.clip, request.views)})
    manifest = for_classes(prepare(override_root(recipe.data, request.data)), trained.labels, f"run '{run.path}'")
    split = labeled(manifest.split(request.split, recipe.data.max_bad))
    if request.data and request.split != "all" and len(split) < len(manifest.table):
        logger.info(
            f"evaluating the {len(split)} {request.split} clips of {len(manifest.table)} in '{request.data}'; "
            f"--split all takes all of them"
        )
    device = choose_device()
    set_deterministic(recipe.train.deterministic)
    fix = f"lower it with --set train.batch_size={max(1, recipe.train.batch // 2)}, or use fewer --views"
    trained = replace(trained, recipe=recipe)
    recording = recorder(trained, manifest, request.split) if recorder else nullcontext()
    with out_of_memory_as_user_error(f"evaluating on {device}", fix), recording as record:
        result = evaluate(
            trained.model.channels_last().to(device),
            split,
            recipe,
            device=device,
            precision=choose_precision(recipe.train.precision, device),
            record=record,
        )
    return run, trained, result
