"""The network that a run starts with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ssv2rt.core.recipes import Recipe
from ssv2rt.models.clip_model import ClipModel, freeze_backbone
from ssv2rt.models.pretrained import LoadReport
from ssv2rt.models.registry import build_model
from ssv2rt.models.residual import set_checkpointing, set_drop_path
from ssv2rt.published.load import start_from
from ssv2rt.training.distributed import Group

logger = logging.getLogger(__name__)


def build_initial_model(
    recipe: Recipe, labels: Sequence[str], group: Group, *, initialize_weights: bool = True
) -> ClipModel:
    """Builds the model with random weights, or with those of `model.init`, and applies the recipe's model settings.

    Args:
        initialize_weights: False if a checkpoint will replace them, so that `model.init` need not exist any more.
    """
    model = build_model(recipe.model, len(labels))
    if recipe.model.init and initialize_weights:

        def initialize() -> tuple[LoadReport, dict[str, torch.Tensor]]:
            report = start_from(model, recipe.model.init, how=recipe.model.inflate, labels=labels)
            return report, model.state_dict()  # other machines may not have the file

        report, weights = group.from_rank_zero(initialize)
        if group.is_rank_zero:
            logger.info(str(report))
        else:
            model.load_state_dict(weights)
    if recipe.model.drop_path:
        set_drop_path(model, recipe.model.drop_path)
    if recipe.model.checkpointing:
        set_checkpointing(model, True)
    if recipe.train.freeze_backbone:
        freeze_backbone(model)
    return model
