"""Compares networks that are trained in the same way: costs, accuracy, and how much they use the order of frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from pydantic import TypeAdapter, ValidationError

from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.hardware import choose_device
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.training.checkpoint import differences, read_state
from ssv2rt.training.checkpointed import data_digest
from ssv2rt.training.model_cost import ModelCost, measure_cost
from ssv2rt.training.temporal_order import TemporalOrderScores, measure_temporal_order
from ssv2rt.training.trainer import Trainer

logger = logging.getLogger(__name__)


DEFAULT_MODELS = ("resnet2d18", "resnet2d18-latefusion", "resnet2d18-lstm", "resnet2d18-gru", "resnet3d18")
"""Networks that are compared by default."""
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class ModelResult:
    """One network and its measurements. Fields are keys of result.json and comparison.json."""

    name: str
    costs: ModelCost
    order: TemporalOrderScores
    seconds: float
    """Total training time."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(recipe: Recipe, names: Sequence[str], manifest: Manifest, folder: Path) -> list[ModelResult]:
    """Trains and measures each network. Results in `folder` from an interrupted call are reused.

    Args:
        recipe: the settings of all trainings; only the model differs.
        names: networks of the registry.
        manifest: the data set. Accuracy is measured on the test split if it has labels, else on the validation split.
        folder: where a run for each network is written.

    Raises:
        UserError: a result in `folder` is damaged, or is of other settings or clips.
        UsageError: the batch size is "auto", but must be the same number for all networks.
    """
    _ = recipe.train.batch  # raises if the batch size is "auto"
    split = manifest.split("test") if _has_labels(manifest) else manifest.split("validation", recipe.data.max_bad)
    device = choose_device()
    for name in names:
        _check_same(Run(folder / name), recipe_for(recipe, name), manifest)
    results = []
    for number, name in enumerate(names, start=1):
        done = folder / name / RESULT_FILE
        if done.is_file():
            results.append(_read_result(done, name))
            logger.info(f"{name}: using the result in '{done}'")
            continue
        logger.info(f"{name} ({number} of {len(names)})")
        settings = recipe_for(recipe, name)
        run, seconds = _train(settings, manifest, folder, name)
        trained = load_trained(run, "last")
        order = measure_temporal_order(trained.model.channels_last().to(device), split, settings, device)
        costs = measure_cost(
            build_model(settings.model, len(manifest.labels)).channels_last().to(device),
            settings.clip,
            batch=settings.train.batch,
            device=device,
        )
        results.append(ModelResult(name, costs, order, seconds))
        write_json(done, results[-1].as_dict())
    return results


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """The same recipe for another network. Temporal strides are reset for networks that have no such setting."""
    changes: dict[str, Any] = {"name": name}
    if not name.startswith("resnet3d"):
        changes["temporal_strides"] = (1, 1, 1, 1)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _train(settings: Recipe, manifest: Manifest, folder: Path, name: str) -> tuple[Run, float]:
    """Trains a network, or resumes its training. Returns the run and the seconds taken."""
    run = Run(folder / name)
    trainer = Trainer(settings, manifest, initialize_weights=not run.is_started)
    start = time.perf_counter()
    if run.is_started:
        trainer.resume(run)
    elif not run.path.exists():
        run = create_run(name, name, root=folder)
    trainer.fit(run)
    return run, time.perf_counter() - start


def _check_same(run: Run, recipe: Recipe, manifest: Manifest) -> None:
    """Raises UserError if an earlier call has trained this run with other settings or clips."""
    if not run.is_started:
        return
    fix = "choose another --out, or remove that folder"
    state = read_state(run)
    if changed := differences(Recipe.model_validate_json(state.recipe), recipe):
        raise UserError(f"'{run.path.parent}' has networks of another comparison: {'; '.join(changed.values())}; {fix}")
    splits = (manifest.split(name, recipe.data.max_bad) for name in ("train", "validation"))
    if tuple(state.labels) != manifest.labels or state.data not in ("", data_digest(*splits)):
        raise UserError(f"'{run.path.parent}' has networks that were trained with other clips; {fix}")


def _has_labels(manifest: Manifest) -> bool:
    test = manifest.table.filter(pc.equal(manifest.table["split"], "test"))
    return bool(pc.any(pc.greater_equal(test["label"], 0)).as_py())


def _read_result(path: Path, name: str) -> ModelResult:
    try:
        result = TypeAdapter(ModelResult).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise UserError(
            f"'{path}' is no result of a comparison ({one_line(error)}); remove it to measure again"
        ) from None
    if result.name != name:
        raise UserError(f"'{path}' is the result of {result.name!r}, not of {name}; remove it to measure again")
    return result


def published_sizes(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Parameters and input size of each network at its published width, for 174 classes and batches of 8 clips.

    The networks are built on the meta device, which allocates no memory.
    """
    sizes = {}
    with torch.device("meta"):
        for name in names:
            model = build_model(Recipe().model.model_copy(update={"name": name}), 174)
            stem = next(m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)))
            frames = 16 if isinstance(stem, torch.nn.Conv3d) else 1
            sizes[name] = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "stem_parameters": stem.weight.numel(),
                "input_bytes_of_8": 8 * 3 * frames * 224 * 224 * 4,
            }
    return sizes
