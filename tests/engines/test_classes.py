"""Engines are compared on data whose classes are matched by name."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from ssv2rt.core.recipe_files import load_engine_recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.index import open_manifest
from ssv2rt.engines.build import build_engine
from tests.cli import ssv2rt


def test_data_with_some_classes_in_another_order_is_matched_by_name(
    tiny_run: Run, tiny_set: Path, tmp_path: Path
) -> None:
    listing = list_clips(tiny_set)
    known = sorted(listing.labels)[:5]
    rows = [(str(tiny_set / clip.path), listing.labels[clip.label], clip.split) for clip in listing.clips]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *(row for row in rows if row[1] in known)])
    run = Run(tmp_path / "run")
    shutil.copytree(tiny_run.path, run.path, ignore=shutil.ignore_patterns("engines"))
    done = ssv2rt("evaluate", run.path, "--data", "t.csv", "--json", cwd=tmp_path)
    expected = json.loads(done.stdout)
    data = open_manifest(tmp_path / "t.csv")
    bundle, _ = build_engine(run, load_engine_recipe("fp32", ("gate.clips=50",)), "openvino", data)
    assert bundle.info.labels == listing.labels != data.labels and bundle.info.verification
    assert bundle.info.verification["clips"] == expected["clips"]
    assert bundle.info.verification["top1_model"] == pytest.approx(expected["top1"])
