"""On twins, which only motion tells apart, what is explained is where the motion is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.run_folders import create_run
from ssv2rt.dataset.prepare import prepare
from ssv2rt.models.grad_cam import grad_cam
from ssv2rt.models.weights import load_trained
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request_of
from ssv2rt.training.trainer import Trainer

MOVING = ("Pushing something from left to right", "Pushing something from right to left", "Moving something down")


@pytest.mark.slow
def test_grad_cam_lights_up_what_moves(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = load_recipe("demo", ("train.epochs=4", "model.width=8", "data.test_videos=''"))
    manifest = prepare(recipe.data)
    run = create_run("twins", root=tmp_path_factory.mktemp("twins") / "runs")
    Trainer(recipe, manifest).fit(run)
    trained, split = load_trained(run), manifest.split("validation")
    wanted = [split.labels.index(name) for name in MOVING]
    rows = [row for row in range(len(split)) if split.classes[row] in wanted]
    loader = ClipLoader(clip=recipe.clip, batch=len(rows), data=recipe.data, device=torch.device("cpu"))
    (batch,) = loader.batches([[evaluation_request_of(split, row, clip=recipe.clip) for row in rows]])
    right = trained.model(batch.clips).argmax(1) == batch.labels
    assert right.float().mean() > 0.6
    heat = grad_cam(trained.model, batch.clips, batch.labels)
    gray = batch.clips.float().mean(-1)
    change = (gray[:, 1:] - gray[:, :-1]).abs()
    # The object is where pixels change, and a map's pixel covers 8 of the clip's.
    moving = F.max_pool3d(change[:, None], (3, 9, 9), 1, (1, 4, 4))[:, 0] > 25
    heat = heat[:, 1:]
    own, others = ratios(heat, moving, right)
    assert np.median(own) > 1.3
    # Objects move through the center of most clips, which a map that is the same for all of them would know, too.
    assert (own > others).mean() > 0.6


def ratios(heat: torch.Tensor, moving: torch.Tensor, right: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean heat where something moves, divided by that elsewhere, and the median of it where something moves in other clips.

    Args:
        heat: float32 (N, T, S, S).
        moving: bool (N, T, S, S).
        right: bool (N,): clips to take.
    """
    chosen = [number for number in range(len(heat)) if right[number] and moving[number].any()]
    table = np.array([[float(heat[a][moving[b]].mean() / heat[a][~moving[b]].mean()) for b in chosen] for a in chosen])
    own = table.diagonal().copy()
    np.fill_diagonal(table, np.nan)
    return own, np.nanmedian(table, axis=1)
