"""Networks beside each other: trained alike on the same clips, and asked what they make of the order of time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch

from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.hardware import choose_device
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run, create_run
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.models.weights import load_trained
from ssv2rt.training.model_cost import ModelCost, measure_cost
from ssv2rt.training.temporal_order import TemporalOrder, measure_order
from ssv2rt.training.trainer import Trainer

logger = logging.getLogger(__name__)


SYSTEMS = ("resnet2d18", "resnet2d18-latefusion", "resnet2d18-lstm", "resnet2d18-gru", "resnet3d18")
"""What is compared by default."""
RESULT = "result.json"


@dataclass(frozen=True)
class System:
    """One network and what was measured of it."""

    name: str
    costs: ModelCost
    order: TemporalOrder
    seconds: float
    """Training, in all."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(recipe: Recipe, names: Sequence[str], manifest: Manifest, folder: Path) -> list[System]:
    """Trains and measures each network. What `folder` has of an interrupted call is taken from there.

    Args:
        recipe: how all of them are trained; only the model differs.
        names: networks of the registry.
        manifest: their data; measured on its test clips if they have labels, else on the validation clips.
        folder: gets a run for each network.

    Raises:
        UsageError: the recipe leaves the batch size to be found, which must be the same for all.
    """
    _ = recipe.train.batch
    split = manifest.split("test") if _has_labels(manifest) else manifest.split("validation", recipe.data.max_bad)
    device = choose_device()
    systems = []
    for number, name in enumerate(names, start=1):
        done = folder / name / RESULT
        if done.is_file():
            systems.append(_read(done))
            logger.info(f"{name}: taken from '{done}'")
            continue
        logger.info(f"{name} ({number} of {len(names)})")
        settings = recipe_for(recipe, name)
        run, seconds = _train(settings, manifest, folder, name)
        trained = load_trained(run, "last")
        order = measure_order(trained.model.channels_last().to(device), split, settings, device)
        costs = measure_cost(
            build_model(settings.model, len(manifest.labels)).channels_last().to(device),
            settings.clip,
            batch=settings.train.batch,
            device=device,
        )
        systems.append(System(name, costs, order, seconds))
        write_json(done, systems[-1].as_dict())
    return systems


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """The same recipe for another network. Strides in time are dropped where a network has none to choose."""
    changes: dict[str, Any] = {"name": name}
    if not name.startswith("resnet3d"):
        changes["temporal_strides"] = (1, 1, 1, 1)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _train(settings: Recipe, manifest: Manifest, folder: Path, name: str) -> tuple[Run, float]:
    run = Run(folder / name)
    trainer = Trainer(settings, manifest)
    start = time.perf_counter()
    if (run.checkpoints / "last").exists():
        trainer.resume(run)
    elif not run.path.exists():
        run = create_run(name, name, root=folder)
    trainer.fit(run)
    return run, time.perf_counter() - start


def _has_labels(manifest: Manifest) -> bool:
    test = manifest.table.filter(pc.equal(manifest.table["split"], "test"))
    return bool(pc.any(pc.greater_equal(test["label"], 0)).as_py())


def _read(path: Path) -> System:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return System(facts["name"], ModelCost(**facts["costs"]), TemporalOrder(**facts["order"]), facts["seconds"])


def at_published_size(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Parameters of each network and of its stem with the widths that were published, for 174 classes, without making it."""
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
