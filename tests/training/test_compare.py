"""Comparison of networks: scores for the order of frames, costs, and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Clip, Model
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.registry import build_model
from ssv2rt.training.compare import compare, published_sizes
from ssv2rt.training.model_cost import measure_cost
from ssv2rt.training.temporal_order import measure_temporal_order
from tests.cli import ssv2rt
from tests.conftest import TINY_SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(Model(name=name, width=8, dropout=0.0), 10).channels_last()


def test_a_network_that_averages_frames_is_blind_to_their_order(manifest: Manifest) -> None:
    """Both twins give the same logits, so pairs are at chance, and reordering frames changes nothing."""
    recipe = load_recipe("compare", TINY_SETTINGS)
    order = measure_temporal_order(network("resnet2d18"), manifest.split("test"), recipe, CPU)  # type: ignore[arg-type]
    assert order.pairs == 5
    assert order.told_apart == 50 and order.both_right == 0
    assert order.top1 == order.top1_reversed == order.top1_shuffled <= 50


def test_a_network_that_knows_all_clips_gets_full_scores(manifest: Manifest) -> None:
    """All scores are 100, except those for reordered frames."""
    split = manifest.split("test")
    recipe = load_recipe("compare", TINY_SETTINGS)

    class Oracle(torch.nn.Module):
        """Looks up the label of a clip by the bytes of its frames."""

        known: dict[bytes, int]

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(clips), 10)
            for row, clip in enumerate(clips):
                logits[row, self.known.get(clip.numpy().tobytes(), 0)] = 1
            return logits

    from ssv2rt.pipelines.samplers import evaluation_batches
    from ssv2rt.training.evaluate import evaluation_loader

    oracle = Oracle()
    oracle.known = {}
    loader = evaluation_loader(recipe, CPU)
    for batch in loader.batches(evaluation_batches(split, recipe.clip, batch=8)):
        for clip, label in zip(batch.clips, batch.labels.tolist(), strict=True):
            oracle.known[clip.numpy().tobytes()] = label
    order = measure_temporal_order(oracle, split, recipe, CPU)  # type: ignore[arg-type]
    assert (order.top1, order.both_right, order.told_apart) == (100, 100, 100)
    # A reversed clip is identical to its twin, and so gets the label of the twin.
    assert order.top1_reversed == 0 and order.top1_shuffled < 100


def test_costs_match_manual_calculation() -> None:
    model = network("resnet3d18")
    costs = measure_cost(model, Clip(frames=4, size=32), batch=2, device=CPU, steps=1)  # type: ignore[arg-type]
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    assert costs.stem_parameters == 8 * 3 * 3 * 7 * 7 and costs.input_bytes == 2 * 3 * 4 * 32 * 32 * 4
    stem = 2 * costs.stem_parameters * 4 * 16 * 16 / 1e9
    assert stem < costs.gflops < 20 * stem
    assert costs.memory_mb > 8 * 2 * 4 * 16 * 16 * 4 / 1e6  # at least the output of the stem
    assert costs.clips_per_second == pytest.approx(2 / costs.step_seconds)
    assert all(p.grad is None for p in model.parameters())
    flat = measure_cost(network("resnet2d18"), Clip(frames=4, size=32), batch=2, device=CPU, steps=1)  # type: ignore[arg-type]
    assert flat.input_bytes * 4 == costs.input_bytes and flat.gflops < costs.gflops


def test_published_sizes_match_the_literature() -> None:
    """Stem weights and input size of a batch of eight, as published for 224 x 224."""
    sizes = published_sizes(["resnet2d18", "resnet3d18"])
    assert sizes["resnet2d18"]["stem_parameters"] == 9_408 and sizes["resnet3d18"]["stem_parameters"] == 28_224
    assert round(sizes["resnet2d18"]["input_bytes_of_8"] / 1e6, 1) == 4.8
    assert round(sizes["resnet3d18"]["input_bytes_of_8"] / 1e6) == 77


def test_an_interrupted_comparison_reuses_its_results(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("compare", TINY_SETTINGS)
    (first,) = compare(recipe, ["resnet2d18"], manifest, tmp_path)
    both = compare(recipe, ["resnet2d18", "resnet3d18"], manifest, tmp_path)
    assert both[0] == first and [result.name for result in both] == ["resnet2d18", "resnet3d18"]
    assert "resnet2d18: using the result in" in capsys.readouterr().err
    other = load_recipe("compare", (*TINY_SETTINGS, "train.epochs=2"))
    with pytest.raises(UserError, match="another comparison: train.epochs was 1, and is 2; choose another --out"):
        compare(other, ["resnet2d18"], manifest, tmp_path)
    fewer = replace(manifest, table=manifest.table.filter(pc.not_equal(manifest.table["split"], "test")).slice(1))
    with pytest.raises(UserError, match="trained with other clips; choose another --out"):
        compare(recipe, ["resnet2d18"], fewer, tmp_path)


def test_the_command_writes_markdown_json_and_figures(tiny_set: Path, tmp_path: Path) -> None:
    settings = [word for setting in TINY_SETTINGS for word in ("--set", setting)]
    done = ssv2rt("compare", "resnet2d18", "resnet2d18-gru", "--data", tiny_set, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resnet2d18-gru" in done.stdout and "told apart" in " ".join(done.stdout.split())
    folder = tmp_path / "comparison"
    facts = json.loads((folder / "comparison.json").read_text())
    assert facts["systems"][0]["order"]["told_apart"] == 50
    page = (folder / "comparison.md").read_text()
    assert "| resnet2d18 | " in page and "9,408" in page
    assert (folder / "comparison.png").stat().st_size > 5000 and (folder / "comparison.svg").is_file()
    done = ssv2rt("compare", "resnet2d19", cwd=tmp_path)
    assert done.returncode == 2 and "no model 'resnet2d19'; did you mean" in done.stderr
