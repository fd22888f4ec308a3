"""Embeddings: the network's features as an additional column."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ssv2rt.core.recipes import Data, with_views
from ssv2rt.core.run_folders import Run
from ssv2rt.engines.bundle import INFO, Bundle
from ssv2rt.models.weights import load_trained
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest
from tests.cli import Done, ssv2rt


def score(folder: Path, bundle: Path, *arguments: object) -> Done:
    return ssv2rt("score", *arguments, "--engine", bundle, "--sort", cwd=folder)


@pytest.mark.parametrize("views", ["1x1", "2x3"])
def test_embeddings_equal_the_network_features(
    tiny_run: Run, tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path, views: str
) -> None:
    videos = sorted((tiny_set / "videos").iterdir())[:10]
    for out in ("p.parquet", "p.csv"):
        done = score(tmp_path, tiny_bundle.path, *videos, "--out", out, "--embeddings", "--views", views)
        assert done.returncode == 0, done.stderr
    clip = with_views(tiny_bundle.info.clip, views)
    loader = ClipLoader(clip=clip, batch=10, data=Data(threads=2), device=torch.device("cpu"))
    (batch,) = loader.batches([[VideoRequest(path.name, path, clip) for path in videos]])
    model = load_trained(tiny_run).model
    with torch.inference_mode():
        expected = model.features(batch.clips).view(10, -1, tiny_bundle.info.embedding).mean(1).numpy()
    found = np.array(pq.read_table(tmp_path / "p.parquet")["embedding"].to_pylist())
    assert found.shape == expected.shape and np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    text = [json.loads(row["embedding"]) for row in csv.DictReader((tmp_path / "p.csv").open(newline=""))]
    assert np.allclose(text, found, rtol=1e-4, atol=1e-6)


def test_an_engine_without_embeddings_is_refused(tiny_bundle: Bundle, tiny_set: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_bundle.path, old)
    info = json.loads((old / INFO).read_text())
    (old / INFO).write_text(json.dumps({key: value for key, value in info.items() if key != "embedding"}))
    done = score(tmp_path, old, tiny_set / "videos", "--out", "p.csv", "--embeddings")
    assert done.returncode == 2 and "the engine gives none; rebuild it with `ssv2rt build-engine" in done.stderr
