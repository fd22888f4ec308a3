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
    ratios = [float(h[m].mean() / h[~m].mean()) for h, m, ok in zip(heat, moving, right, strict=True) if ok and m.any()]
    assert np.median(ratios) > 1.3
