"""A manifest of any content is read right, refused in one line, or made anew: never a traceback.

Beside the data it is made anew. One that is named by its path is refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.index import index, open_manifest
from ssv2rt.dataset.manifest import SCHEMA, Manifest, read_manifest
from ssv2rt.dataset.summary import summarize
from ssv2rt.pipelines.request_source import evaluation_request
from tests.cli import ssv2rt
from tests.conftest import numbered_video

KEY = b"ssv2rt"
Mutation = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two clips, one of which has an uneven frame rate in its manifest, and one of which is damaged."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    for name in ("up", "down"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            numbered_video(root / name / f"{number}.mp4", "libx264", frames=4)
    (root / "up" / "damaged.mp4").write_bytes(b"none")
    return root


@pytest.fixture(scope="module")
def table(data: Path) -> pa.Table:
    index(data)
    table = pq.read_table(data / "manifest.parquet")
    facts = json.loads(table.schema.metadata[KEY]) | {"folder": str(data)}
    table = table.replace_schema_metadata({KEY: json.dumps(facts).encode()})
    times = pa.array([[0.0, 0.1, 0.5, 0.6], *[None] * (len(table) - 1)], SCHEMA.field("times").type)
    return table.set_column(table.column_names.index("times"), SCHEMA.field("times"), times)


def with_column(table: pa.Table, name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 1, 2**31 - 1, 10**6]),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["", "a\0b", "x" * 100_000, "../../etc/passwd", "\x1b[2J", "ok", "test", "/", "C:\\x"]),
    st.binary(max_size=8),
    st.lists(st.floats(width=32), max_size=5),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\0", "\ud800", "x" * 9999]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def column_mutations(draw: st.DrawFn) -> Mutation:
    """Other values in a column, one or all, where Arrow can store them; or the column is gone, or there twice."""
    name = draw(st.sampled_from(SCHEMA.names))
    how = draw(st.sampled_from(["one", "one", "all", "gone", "twice", "binary"]))
    value, number = draw(VALUES), draw(st.integers(0, 4))

    def mutate(table: pa.Table) -> pa.Table:
        if how == "gone":
            return table.drop_columns([name])
        if how == "twice":
            return table.append_column(name, table[name])
        if how == "binary":
            return with_column(table, name, [b"\xff\xfe"] * len(table))
        old = table[name].to_pylist()
        values = [value if how == "all" or at == number else before for at, before in enumerate(old)]
        try:
            return with_column(table, name, values, table.schema.field(name).type if how == "one" else None)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return table

    return mutate


@st.composite
def metadata_mutations(draw: st.DrawFn) -> Mutation:
    """Another value for a key of the metadata, or text that is not JSON."""
    key = draw(st.sampled_from(["version", "folder", "labels", "sources", "fingerprint"]))
    value = draw(st.one_of(JSON, st.lists(st.text(max_size=3) | st.none(), max_size=3)))
    how = draw(st.sampled_from(["value", "value", "value", "gone", "text"]))
    text = draw(st.binary(max_size=9) | st.just(b"[" * 100_000) | st.just(b"[1]") | st.just(b"9" * 5000))

    def mutate(table: pa.Table) -> pa.Table:
        facts = json.loads(table.schema.metadata[KEY]) | {key: value}
        if how == "gone":
            del facts[key]
        return table.replace_schema_metadata({KEY: text if how == "text" else json.dumps(facts).encode()})

    return mutate


def use(manifest: Manifest) -> None:
    """Everything that commands do with the rows of a manifest before they decode."""
    json.dumps(summarize(manifest, Path("m.parquet"))) if set(SCHEMA.names) <= set(
        manifest.table.column_names
    ) else None
    for name in ("train", "validation", "test"):
        try:
            split = manifest.split(name)
        except UserError:
            continue
        assert len(split.mirrored) == len(manifest.labels)
        for row in range(len(split)):
            path, video = split.path(row), split.video_meta(row)
            path.exists()
            request = evaluation_request(split.ids[row].as_py(), path, video, clip=Clip(frames=4, size=32))
            assert np.all((request.frames >= 0) & (request.frames < video.frames))
            assert -1 <= split.classes[row] < len(split.labels)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(column_mutations() | metadata_mutations(), min_size=1, max_size=2))
def test_any_manifest_is_read_refused_or_made_anew(data: Path, table: pa.Table, mutations: list[Mutation]) -> None:
    beside, by_path = data / "manifest.parquet", data.parent / "m.parquet"
    hostile = table
    for mutate in mutations:
        try:
            hostile = mutate(hostile)
        except (KeyError, RecursionError, TypeError, ValueError):  # the column or the metadata is gone
            continue
    pq.write_table(hostile, by_path)
    shutil.copy(by_path, beside)
    if (found := read_manifest(by_path)) is not None:
        use(found)
    said = ""
    try:
        use(open_manifest(by_path))
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) < 2
    manifest = open_manifest(data)  # by way of `index`, since a clip is damaged
    use(manifest)
    good = manifest.table.filter(pc.equal(manifest.table["status"], "ok"))
    assert len(manifest.table) == 5 and manifest.labels == ("down", "up") and len(good) <= 4


DAMAGED: dict[str, Mutation] = {
    "null": lambda table: with_column(table, "split", [None] * len(table)),
    "negative": lambda table: with_column(table, "frames", [-4] * len(table)),
    "huge name": lambda table: with_column(table, "path", ["\0" + "x" * 10**6] * len(table)),
    "type": lambda table: with_column(table, "label", [["a"]] * len(table)),
    "labels": lambda table: table.replace_schema_metadata({KEY: b'{"version": 3, "labels": 5}'}),
    "not parquet": lambda table: table,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_commands_refuse_a_damaged_manifest_in_one_line(
    tmp_path: Path, table: pa.Table, tiny_run: Run, name: str
) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(DAMAGED[name](table), path)
    if name == "not parquet":
        path.write_bytes(path.read_bytes()[:-9])
    for command in (["train"], ["evaluate", tiny_run.path], ["index"]):
        words = [*command, path] if command == ["index"] else [*command, "--data", path]
        done = ssv2rt(*words, cwd=tmp_path)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert sum(line.startswith("Error") for line in done.stderr.splitlines()) == 1, done.stderr
