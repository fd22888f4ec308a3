"""The catalog: its figures are those of the networks, and its classes those of the data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from ssv2rt.models.cost import count_macs
from ssv2rt.models.registry import build_model
from ssv2rt.published.catalog import IMAGENET, PUBLISHED, Published, class_names
from tests.conftest import REAL

WEIGHTS = {**PUBLISHED, **IMAGENET}


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=lambda entry: entry.name)
def test_parameters_and_macs_are_those_of_the_network(entry: Published) -> None:
    with torch.device("meta"):  # allocates nothing
        model = build_model(entry.model, len(class_names(entry.classes)))
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    macs = count_macs(model, frames=entry.clip.frames, size=entry.clip.size)
    assert macs / 1e9 == pytest.approx(entry.gmacs, abs=0.006)


@pytest.mark.parametrize("name", WEIGHTS)
def test_addresses_and_hashes_are_well_formed(name: str) -> None:
    weights = WEIGHTS[name]
    assert weights.name == name and weights.url.startswith("https://") and weights.about.startswith("https://")
    assert re.fullmatch(r"[\w.-]+\.(pth|pyth|pth\.tar)", weights.file)
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", weights.sha256) and weights.license and weights.publisher
    assert sum(other.file == weights.file for other in WEIGHTS.values()) == 1


def test_classes_are_numbered_by_their_sorted_names() -> None:
    for classes, count in (("ssv2", 174), ("kinetics400", 400)):
        names = class_names(classes)  # type: ignore[arg-type]
        assert len(names) == len(set(names)) == count and list(names) == sorted(names)
        assert not [name for name in names if name != name.strip() or not name]


def test_classes_of_ssv2_have_its_numbers() -> None:
    file = REAL / "ssv2" / "labels.json"
    if not file.is_file():
        pytest.skip("SSv2's label list is not on this machine")
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert {name: str(number) for number, name in enumerate(class_names("ssv2"))} == numbers


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=lambda entry: entry.name)
def test_the_page_on_published_networks_says_the_same(entry: Published) -> None:
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{entry.name}`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    name, network, top1, top5, clip, views, parameters, gmacs, rates, publisher = cells
    assert (f"({entry.data_set})" in name) == (entry.classes != "ssv2") and network == f"`{entry.model.name}`"
    assert float(top1) == round(entry.top1, 2) and top5 == (f"{entry.top5:.2f}" if entry.top5 else "")
    assert clip == f"{entry.clip.frames}x{entry.clip.size}" and views == "x".join(map(str, entry.clip.views))
    assert parameters == f"{entry.parameters / 1e6:.2f}" and gmacs == f"{entry.gmacs:.1f}"
    assert entry.publisher in publisher and publisher.endswith(f", {entry.license}")
    assert re.fullmatch(r"[0-9.]+, [0-9.]+", rates), "int8 and bf16"


def test_the_readme_says_the_same() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Published networks on Something-Something V2\n")[2].partition("\n## ")[0]
    named = []
    for line in table.splitlines():
        if names := re.findall(r"`([\w-]+)`", line):
            *_, top1, clips, gmacs = (cell.strip().split(", ") for cell in line.strip("| ").split("|"))
            entries = [PUBLISHED[name] for name in names]
            assert top1 == [f"{entry.top1:.1f}" for entry in entries] and all(e.publisher in line for e in entries)
            assert clips in (
                [f"{e.clip.frames} x {e.clip.size}" for e in entries],
                [f"{entries[0].clip.frames} x {entries[0].clip.size}"],
            )
            assert gmacs == [f"{entry.gmacs:.0f}" for entry in entries]
            named += names
    assert len(named) == len(set(named)) == 8
