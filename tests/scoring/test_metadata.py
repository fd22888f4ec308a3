"""Outputs say which engine made them, and merging heeds it; errors are summarized by reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ssv2rt.core.errors import UserError
from ssv2rt.engines.bundle import Bundle, open_bundle
from ssv2rt.scoring.merge import merge
from ssv2rt.scoring.metadata import KEY, metadata_file, read_metadata
from ssv2rt.scoring.row import columns
from ssv2rt.scoring.writers import open_writer
from tests.cli import ssv2rt

ROW = {"video": "a.webm", "status": "ok", "frames": 3, "label": "x", "probability": 0.5}
ENGINE = {"name": "fp16-openvino", "sha256": "1"}
METADATA = {"weights_sha256": "w", "labels": ["x", "y"], "clip": {"frames": 4}, "windows": None, "engines": [ENGINE]}


def written(path: Path, metadata: dict[str, Any] | None, **facts: object) -> Path:
    with open_writer(path, columns(1), metadata and {**metadata, **facts}) as writer:
        writer.write([ROW | {"video": path.name}])
    return path


@pytest.fixture(scope="module")
def inputs(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for video in sorted((tiny_set / "videos").iterdir())[:3]:
        shutil.copy(video, folder)
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_outputs_say_what_made_them(tiny_bundle: Bundle, inputs: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"p.{suffix}"
    call = ("score", inputs, "--engine", tiny_bundle.path, "--out", out)
    assert ssv2rt(*call, "--views", "1x3", cwd=tmp_path).returncode == 0
    bundle = open_bundle(tiny_bundle.path)
    if suffix == "parquet":
        found = json.loads(pq.read_schema(out).metadata[KEY])
        assert not metadata_file(out).exists()
    else:
        found = json.loads((tmp_path / f"p.{suffix}.meta.json").read_text())
    assert found == read_metadata(out)
    assert found["labels"] == list(bundle.info.labels) and found["weights_sha256"] == bundle.info.weights_sha256
    assert found["clip"]["views"] == [1, 3] and found["clip"]["frames"] == bundle.info.clip.frames
    assert found["engines"][0]["sha256"] == bundle.digest and found["engines"][0]["name"] == "fp16-openvino"
    assert found["windows"] is None and found["model"] == bundle.info.model
    assert ssv2rt(*call, "--overwrite", "--window", 0.5, cwd=tmp_path).returncode == 0
    now = read_metadata(out)
    assert now and now["windows"] == {"seconds": 0.5, "hop": 0.25, "merged": False} and now["clip"]["views"] == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} <= {out.name, metadata_file(out).name}


def test_metadata_survives_a_resumed_run(tiny_bundle: Bundle, inputs: Path, tmp_path: Path) -> None:
    call = ("score", inputs, "--engine", tiny_bundle.path, "--out", "p.csv")
    assert ssv2rt(*call, cwd=tmp_path).returncode == 0
    before = read_metadata(tmp_path / "p.csv")
    assert ssv2rt(*call, "--resume", cwd=tmp_path).returncode == 0  # nothing is left to do
    assert read_metadata(tmp_path / "p.csv") == before
    # As if the run had been killed after its last row, beside the metadata of an earlier output.
    header = {"ssv2rt": 1, **_facts_of_a_run(tiny_bundle)}
    (tmp_path / "p.csv.journal").write_text(json.dumps(header) + "\n")
    (tmp_path / "p.csv").unlink()
    (tmp_path / "p.csv.meta.json").write_text('{"engines": "of another output"}')
    assert ssv2rt(*call, "--resume", cwd=tmp_path).returncode == 0
    assert read_metadata(tmp_path / "p.csv") == before


def _facts_of_a_run(bundle: Bundle) -> dict[str, object]:
    bundle = open_bundle(bundle.path)
    clip = bundle.info.clip.model_dump(mode="json", exclude={"average"})  # as before there was such a setting
    facts = {"engine": bundle.digest, "clip": clip, "top_k": 5, "columns": [], "windows": []}
    return {**facts, "shard": "1/1", "annotations": ""}


def test_an_output_without_metadata_leaves_none_of_an_earlier_one(tmp_path: Path) -> None:
    out = written(tmp_path / "p.csv", METADATA)
    assert read_metadata(out) == METADATA
    written(out, None)
    assert read_metadata(out) is None and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_merging_keeps_the_metadata(tmp_path: Path, suffix: str) -> None:
    parts = [written(tmp_path / f"{number}.{suffix}", METADATA) for number in range(3)]
    merge(parts, tmp_path / f"all.{suffix}")
    assert read_metadata(tmp_path / f"all.{suffix}") == METADATA


def test_merging_names_the_engines_and_refuses_other_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = written(tmp_path / "1.csv", METADATA)
    other = {"name": "int8-openvino", "sha256": "2"}
    second = written(tmp_path / "2.csv", METADATA, engines=[other])
    merge([first, second, first], tmp_path / "all.csv")
    found = read_metadata(tmp_path / "all.csv")
    assert found and found["engines"] == [ENGINE, other]
    assert "scored by 2 engines of the same network: fp16-openvino, int8-openvino" in capsys.readouterr().err
    merge([written(tmp_path / "old.csv", None), first], tmp_path / "some.csv")
    assert "1 of 2 parts, such as" in capsys.readouterr().err and read_metadata(tmp_path / "some.csv") == METADATA
    for name, facts in (
        ("weights_sha256", {"weights_sha256": "v"}),
        ("labels", {"labels": ["y", "x"]}),
        ("clip", {"clip": {"frames": 8}}),
        ("windows", {"windows": {"seconds": 1.0}}),
    ):
        third = written(tmp_path / "3.csv", METADATA, **facts)
        with pytest.raises(UserError, match=f"'{third}' has other {name} than '{first}'"):
            merge([first, third], tmp_path / "none.csv")
    # Outputs of versions that had no such setting had what is now its default.
    clip = {"frames": 4, "average": "probabilities"}
    merge([first, written(tmp_path / "4.csv", METADATA, clip=clip)], tmp_path / "same.csv")
    wrong = (
        {"labels": "x"},
        {"labels": [1]},
        {"clip": 4},
        {"clip": {"frames": 0}},
        {"clip": {"a": 1}},
        {"engines": ["e"]},
    )
    altered = [json.dumps(METADATA | values) for values in wrong]
    for text in ("{", "[]", '{"engines": []}', '{"engines": 1, "labels": 1}', "\xff", *altered):
        metadata_file(third).write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"cannot read the metadata|has no metadata of") as caught:
            merge([first, third], tmp_path / "none.csv")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("none*"))


def test_errors_are_counted_by_reason(tiny_bundle: Bundle, inputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(inputs, folder)
    for number in range(4):
        (folder / f"{number}\n\x1b[31m.mp4").touch()
    (folder / "text.mp4").write_text("no video\n" * 50)
    call = ("score", "in", "--engine", tiny_bundle.path, "--out", "p.csv", "--overwrite")
    done = ssv2rt(*call, "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert done.returncode == 3 and facts["errors"] == 5
    reasons = facts["errors by reason"]
    assert {reason: found["rows"] for reason, found in reasons.items()} == {"empty file": 4, "unreadable": 1}
    assert len(reasons["empty file"]["first"]) == 3 and reasons["unreadable"]["first"] == ["in/text.mp4"]
    done = ssv2rt(*call, "--sort", cwd=tmp_path)
    assert done.returncode == 3 and "by reason" not in done.stdout
    lines = done.stderr.splitlines()
    at = next(number for number, line in enumerate(lines) if line.split() == ["error", "rows", "first"])
    names = ", ".join(rf"in/{number}\n\x1b[31m.mp4" for number in range(3))
    assert lines[at + 1 :] == [f"empty file      4  {names}", "unreadable      1  in/text.mp4"]
