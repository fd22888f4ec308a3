"""Published weights in a network: colors in another order, weights that fit several entries, and names for `train --init`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import PUBLISHED
from ssv2rt.published.load import entry_of, load_network
from tests.models import publishers
from tests.published.as_published import as_pytorchvideo


@pytest.mark.parametrize("name", ["slow-r50", "slowfast-r50"])
def test_a_network_that_was_trained_on_blue_green_red_takes_rgb(name: str) -> None:
    model = Model(name=name, width=32 if name == "slowfast-r50" else 8)
    entry = replace(PUBLISHED[f"{name}-ssv2"], model=model)
    trained = random(build_model(model, 174))
    trained.normalise.set_colors((255 * 0.45,) * 3, (255 * 0.225,) * 3)
    imported = load_network(entry, as_pytorchvideo(trained), "weights")
    clips = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trained(clips.flip(-1))  # the publisher's frames are blue, green, red
        assert (imported(clips) - expected).abs().max() < 1e-4 * expected.std()
        assert (trained(clips) - expected).abs().max() > 0.01 * expected.std()
    fine_tuned = build_model(model, 51)  # by somebody else, as other classes show
    for weights in (as_pytorchvideo(fine_tuned), imported.state_dict()):
        kept = load_network(entry, weights, "weights")
        before = fine_tuned if kept.head.out_features == 51 else imported
        stems = {key: weight for key, weight in before.state_dict().items() if "stem.0" in key}
        assert stems and all(torch.equal(kept.state_dict()[key], weight) for key, weight in stems.items())


def random(model: ClipModel) -> ClipModel:
    """The same model with random batch norms, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


def test_weights_of_several_entries_need_a_name() -> None:
    weights = publishers.tsm("50", 64, 174).state
    with pytest.raises(UsageError, match="fits tsm-r50-8f-ssv2, tsm-r50-16f-ssv2, .* say which it is with --as"):
        entry_of(weights, "w.pth")
