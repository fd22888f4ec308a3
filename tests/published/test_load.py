"""Published weights in a network: the publisher's logits, also as initial weights; and weights that fit several entries."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipes import Model
from ssv2rt.models.load_weights import read_weights
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import PUBLISHED, class_names
from ssv2rt.published.download import weights_folder
from ssv2rt.published.load import entry_of, load_network, start_from
from tests.models import publishers
from tests.models.test_published_weights import EXACT, clips, error
from tests.published.as_published import publisher_of


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_whole_network_has_the_logits_of_its_publisher_on_published_clips(name: str, tmp_path: Path) -> None:
    entry = PUBLISHED[name]
    network = publisher_of(entry)
    file = network.save(tmp_path)
    batch = clips(1, entry.clip.frames, entry.clip.size)
    # In fp32, rounding alone makes a difference of 1.4 times `EXACT` in PyTorchVideo's networks.
    dtype = torch.float64 if name.startswith("slow") else torch.float32
    expected = network.expected(batch.flip(-1) if entry.bgr else batch, dtype)
    assert error(load_network(entry, read_weights(file)[0], file).to(dtype), batch, expected) < EXACT


@pytest.mark.parametrize("name", ["slow-r50", "slowfast-r50"])
def test_a_network_that_was_trained_on_blue_green_red_takes_rgb(name: str) -> None:
    make, width = (publishers.slowfast, 32) if name == "slowfast-r50" else (publishers.slow, 8)
    entry = replace(PUBLISHED[f"{name}-ssv2"], model=Model(name=name, width=width))
    network, batch = make(width, 174), clips(1, 8, 64)
    expected = network.expected(batch.flip(-1))  # the publisher's frames are blue, green, red
    imported = load_network(entry, network.state, "weights")
    assert error(imported, batch, expected) < EXACT and error(imported, batch, network.expected(batch)) > 0.01
    assert error(load_network(entry, imported.state_dict(), "own"), batch, expected) < EXACT
    fine_tuned = make(width, 51)  # by somebody else, as other classes show
    assert error(load_network(entry, fine_tuned.state, "weights"), batch, fine_tuned.expected(batch)) < EXACT


def test_weights_of_several_entries_need_a_name() -> None:
    weights = publishers.tsm("50", 64, 174).state
    with pytest.raises(UsageError, match="fits tsm-r50-8f-ssv2, tsm-r50-16f-ssv2, .* say which it is with --as"):
        entry_of(weights, "w.pth")


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_starts_from_every_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSV2RT_CACHE", str(tmp_path))
    width = 32 if name.startswith("slowfast") else 16
    entry = replace(PUBLISHED[name], model=Model(name=PUBLISHED[name].model.name, width=width), sha256="")
    monkeypatch.setitem(PUBLISHED, name, entry)
    network, batch = publisher_of(entry, width), clips(1, 4, 64)
    weights_folder().mkdir()
    os.replace(network.save(tmp_path), weights_folder() / entry.file)
    expected = network.expected(batch.flip(-1) if entry.bgr else batch)
    labels = class_names(entry.classes)
    for order in (slice(None), slice(None, None, -1)):
        model = build_model(entry.model, len(labels)).eval()
        report = start_from(model, name, labels=labels[order])
        assert not report.missing and not report.skipped
        assert f"{len(labels)} of {len(labels)} classes are taken over by name" in report.classes
        assert error(model, batch, expected[:, list(range(len(labels)))[order]]) < EXACT
