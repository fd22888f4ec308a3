"""Files of a run and manifests from anywhere: whatever they hold, commands read them, or refuse them in one line."""

import copy
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomlkit
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ssv2rt.core.errors import UserError
from ssv2rt.core.log import printable
from ssv2rt.core.run_folders import Run
from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.listing import METADATA_KEY
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.models.weights import WEIGHTS, load_trained
from ssv2rt.report.plots import draw_curves
from ssv2rt.training.checkpoint import STATE
from ssv2rt.training.compare import _read_result
from ssv2rt.training.decoding import read_decoding_record
from ssv2rt.training.metrics_log import MetricsLog, read_metrics
from ssv2rt.training.trainer import Trainer

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**70, 0.5, 1e308, float("nan"), float("inf")),
    *("", "..", "\x1b[2J", "a\nb", "\0", "x" * 3000, [], {}, [[]], [None], {"a": {"b": 1}}, [1, [2, [3]]]),
]
TENSORS = [torch.zeros(0), torch.zeros(3, 3), torch.zeros(5056, dtype=torch.uint8), torch.tensor(float("nan"))]
OFTEN = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(tiny_run.path, folder, symlinks=True)
    return Run(folder)


@pytest.fixture(scope="module")
def manifest(tiny_set: Path) -> Manifest:
    return open_manifest(tiny_set)


@pytest.fixture(scope="module")
def trainer(run: Run, manifest: Manifest) -> Trainer:
    return Trainer(run.recipe(), manifest)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of nested dicts and lists."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*before, key)
        yield from places(value[key], (*before, key))


def changed(value: Any, draw: st.DataObject, hostile: list[Any]) -> Any:
    """A copy in which an entry is replaced or left out."""
    value = copy.deepcopy(value)
    *above, last = draw.draw(st.sampled_from(sorted(places(value), key=str)))
    holder = value
    for key in above:
        holder = holder[key]
    if draw.draw(st.integers(0, 4)):
        holder[last] = draw.draw(st.sampled_from(hostile))
    else:
        del holder[last]
    return value


def is_one_line(error: UserError, codes: tuple[int, ...] = (1,)) -> None:
    assert error.exit_code in codes and len(str(error)) < 4000
    assert "\n" not in printable(str(error)).strip()


def refused(call: Any, *codes: int) -> None:
    """Calls something that may raise a `UserError`, and nothing else."""
    try:
        call()
    except UserError as error:
        is_one_line(error, codes or (1,))


@OFTEN
@given(st.data())
def test_recipe_toml(run: Run, draw: st.DataObject) -> None:
    content = run.recipe_file.read_text()
    try:
        if draw.draw(st.booleans()):
            recipe = changed(
                tomlkit.parse(content).unwrap(), draw, [x for x in HOSTILE if x is not None and x != [None]]
            )

            run.recipe_file.write_text(tomlkit.dumps(recipe))
        else:
            at, junk = draw.draw(st.integers(0, len(content))), draw.draw(st.binary(max_size=8))
            run.recipe_file.write_bytes(content[:at].encode() + junk + content[at + 3 :].encode())
        refused(lambda: load_trained(run), 1, 2)
    finally:
        run.recipe_file.write_text(content)


@OFTEN
@given(st.data())
def test_state_pt(run: Run, trainer: Trainer, draw: st.DataObject) -> None:
    path = run.checkpoints / "last" / STATE
    content = path.read_bytes()
    try:
        if draw.draw(st.integers(0, 3)):
            state = torch.load(io.BytesIO(content), weights_only=True)
            torch.save(changed(state, draw, HOSTILE + TENSORS), path)
        else:
            at, junk = draw.draw(st.integers(0, len(content))), draw.draw(st.binary(min_size=1, max_size=8))
            path.write_bytes(content[:at] + junk + content[at + len(junk) :])
        refused(lambda: trainer.resume(run))
    finally:
        path.write_bytes(content)
    trainer.resume(run)


@OFTEN
@given(st.data())
def test_metadata_of_weights(run: Run, draw: st.DataObject) -> None:
    path = run.checkpoints / "best" / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    decoded = {"labels": json.loads(header["labels"]), "recipe": header["recipe"], "epoch": int(header["epoch"])}
    try:
        new = changed(decoded, draw, HOSTILE)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in new.items()}
        save_file(load_file(path), path, texts)
        refused(lambda: load_trained(run), 1, 2)
        at, junk = draw.draw(st.integers(0, length + 16)), draw.draw(st.binary(min_size=1, max_size=8))
        path.write_bytes(content[:at] + junk + content[at + len(junk) :])
        refused(lambda: load_trained(run), 1, 2)
    finally:
        path.write_bytes(content)


@settings(OFTEN, max_examples=6)
@given(st.data())
def test_metrics_and_environment(run: Run, draw: st.DataObject) -> None:
    """Lines that are not ours are dropped, and a damaged record of decoding counts as none."""
    metrics = run.metrics_file.read_text()
    environment = (run.path / "environment.json").read_text()
    facts = json.loads(environment)
    facts["decoder"] = {
        "by_pyav": ["1"],
        "kinds": {"vp9": {"counting": "shown", "reason": "", "trim": [0, 0], "clips": 4}},
    }
    try:
        (run.path / "environment.json").write_text(json.dumps(changed(facts, draw, HOSTILE)))
        record = read_decoding_record(run)
        assert all(isinstance(name, str) for name in record.by_pyav)
        lines = [json.dumps(changed(json.loads(line), draw, HOSTILE)) for line in metrics.splitlines()]
        run.metrics_file.write_text("\n".join(lines))
        MetricsLog(run, epoch=1, update=10**6)
        assert read_metrics(run.metrics_file) is not None
        run.metrics_file.write_text("\n".join(lines))
        draw_curves(read_metrics(run.metrics_file), run.path / "curves", Train(), title="t", classes=6, best=1)
    finally:
        run.metrics_file.write_text(metrics)
        (run.path / "environment.json").write_text(environment)


@OFTEN
@given(st.data())
def test_result_of_a_comparison(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("result") / "result.json"
    costs = dict.fromkeys(("parameters", "stem_parameters", "input_bytes"), 1)
    costs |= dict.fromkeys(("gflops", "memory_mb", "step_seconds", "clips_per_second"), 0.5)
    order = dict.fromkeys(("top1", "top1_reversed", "top1_shuffled", "both_right", "told_apart"), 50.0) | {"pairs": 5}
    facts = {"name": "resnet3d18", "costs": costs, "order": order, "seconds": 3.5}
    path.write_text(json.dumps(facts))
    assert _read_result(path, "resnet3d18").as_dict() == facts
    path.write_text(json.dumps(changed(facts, draw, HOSTILE)))
    refused(lambda: _read_result(path, "resnet3d18"))


@pytest.fixture(scope="module")
def table(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("manifest") / "x.manifest.parquet"
    index(tiny_set, out=out)
    return pq.read_table(out)


CELLS = {
    pa.int32(): [-1, 0, 10, 2**31 - 1, None],
    pa.float32(): [float("nan"), -1.0, float("inf"), None],
    pa.string(): ["", "nowhere", "\0", None, "ok"],
}
COLUMNS = [pa.nulls(80), pa.array([1.5] * 80), pa.array(["a"] * 80), pa.array([[1.0]] * 80), pa.array([b"\xff"] * 80)]


@OFTEN
@given(st.data())
def test_manifest(table: pa.Table, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """What is read can be trained on: every clip has frames, a size and a class that exists."""
    path = tmp_path_factory.mktemp("hostile") / "x.manifest.parquet"
    facts = json.loads(table.schema.metadata[METADATA_KEY])
    how = draw.draw(st.sampled_from(["facts", "column", "cell", "bytes"]))
    new = table
    if how == "facts":
        new = table.replace_schema_metadata({METADATA_KEY: json.dumps(changed(facts, draw, HOSTILE)).encode()})
    at = draw.draw(st.integers(0, table.num_columns - 1))
    name = table.column_names[at]
    if how == "column":
        new = draw.draw(st.sampled_from([table.remove_column(at), *(table.set_column(at, name, c) for c in COLUMNS)]))
    if how == "cell" and table[name].type in CELLS:
        values = table[name].to_pylist()
        values[draw.draw(st.integers(0, 79))] = draw.draw(st.sampled_from(CELLS[table[name].type]))
        new = table.set_column(at, table.schema.field(name), pa.array(values, table[name].type))
    pq.write_table(new, path)
    if how == "bytes":
        content = path.read_bytes()
        place, junk = draw.draw(st.integers(0, len(content))), draw.draw(st.binary(min_size=1, max_size=8))
        path.write_bytes(content[:place] + junk + content[place + len(junk) :])

    def use() -> None:
        manifest = open_manifest(path)
        for split in ("train", "validation"):
            clips = manifest.split(split)
            assert clips.frames.min() > 0 and clips.widths.min() > 0 and clips.classes.max() < len(manifest.labels)
            assert len(clips.mirrored) == len(manifest.labels) and clips.digest()

    refused(use)


def test_two_readings_of_the_same_data_have_one_digest(tiny_set: Path, manifest: Manifest) -> None:
    """From the manifest file, and from the videos."""
    probed, _ = index(tiny_set)
    read = open_manifest(tiny_set)
    for split in ("train", "validation", "test"):
        assert probed.split(split).digest() == read.split(split).digest() == manifest.split(split).digest()
