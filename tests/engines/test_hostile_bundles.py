"""bundle.json from anywhere: whatever it holds, commands read it, or refuse it in one line."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssv2rt.commands.inspect import inspect
from ssv2rt.commands.score import score
from ssv2rt.core.errors import UserError
from ssv2rt.core.log import printable
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.backends.tensorrt.backend import target_includes
from ssv2rt.engines.bundle import Bundle, open_bundle
from ssv2rt.engines.inspect import engine_layers
from ssv2rt.scoring.devices import devices_for

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "/etc/passwd", "\x1b[2J", "a\nb", "\0", "x" * 5000, "sm", "sm+", "sm9x+", "9" * 5000, "openvino"),
    *("\ud800", ["\udc00"], {"\ud800": 1}, [], {}, [[]], [None], {"a": {"b": 1}}, [1, [2, [3]]], {"threads": "many"}),
]


@pytest.fixture(scope="module")
def place(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "fp16"
    shutil.copytree(tiny_bundle.path, folder)
    return folder


@pytest.fixture(scope="module")
def facts(tiny_bundle: Bundle) -> dict[str, Any]:
    """A bundle.json with every entry that a backend or a precision can give it."""
    info = json.loads((tiny_bundle.path / "bundle.json").read_text())
    info["settings"] |= {
        "cuda_graph": True,
        "version_compatible": False,
        "layers": {"convolutions": {"INT8": 19, "FP16": 1}},
    }
    info["calibration"] = {
        "clips": 20,
        "method": "minmax",
        "seed": 0,
        "max_drop": 1.0,
        "stem": False,
        "head": False,
        "kept": ["layer1.0"],
        "sensitivity": {"layer1.0": 0.1},
        "drop_without_any": 2.0,
        "drop": 0.5,
    }
    info["verification"] |= {"clips_per_second": 10.0, "clips_per_second_fp16": 5.0}
    return dict(info)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of nested JSON."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*before, key)
        yield from places(value[key], (*before, key))


def one_line(error: BaseException | None) -> None:
    assert isinstance(error, UserError), repr(error)
    assert (
        (error.exit_code == 1 and "rebuild it" in str(error)) or "no hash for" in str(error) or "backend" in str(error)
    )
    assert "\n" not in printable(str(error)) and len(str(error)) < 12_000


def test_every_entry_is_known(place: Path, facts: dict[str, Any]) -> None:
    (place / "bundle.json").write_text(json.dumps(facts))
    assert open_bundle(place).info.model_dump(mode="json") == facts


def with_entry(facts: dict[str, Any], entry: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = inside = copy.deepcopy(facts)
    for part in entry[:-1]:
        inside = inside[part]
    inside[entry[-1]] = value
    return changed


def test_every_entry_is_checked(place: Path, facts: dict[str, Any]) -> None:
    for entry in places(facts):
        old = facts
        for part in entry:
            old = old[part]
        for value in ({"surprise": [None]}, [[{}]], "\ud800", *(() if isinstance(old, str) else ("many",))):
            (place / "bundle.json").write_text(json.dumps(with_entry(facts, entry, value)))
            with pytest.raises(UserError) as caught:
                open_bundle(place)
            one_line(caught.value)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_an_entry_is_read_or_refused_in_one_line(
    place: Path, facts: dict[str, Any], data: st.DataObject
) -> None:
    changed, hostile = copy.deepcopy(facts), st.sampled_from(HOSTILE).map(copy.deepcopy)
    for _ in range(data.draw(st.integers(1, 2))):
        section = data.draw(st.sampled_from(list(changed)))
        entry = data.draw(st.sampled_from([(section,), *places(changed[section], (section,))]))
        inside, key = changed, entry[-1]
        for part in entry[:-1]:
            inside = inside[part]
        action = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "replace":
            inside[key] = data.draw(hostile)
        elif action == "remove":
            del inside[key]
        elif isinstance(inside, dict):
            inside[data.draw(st.sampled_from(["surprise", "\x1b[31m", "\ud800"]))] = data.draw(hostile)
    (place / "bundle.json").write_text(json.dumps(changed))
    try:
        bundle = open_bundle(place)
    except UserError as error:
        one_line(error)
        return
    assert bundle.info.on_gpu or devices_for(bundle.info, None) == [None]
    target_includes(bundle.info.target, "sm90")
    "".join(bundle.info.labels).encode()  # as rows are written
    shown = CliRunner().invoke(inspect, [str(place)])
    assert shown.exit_code == 0 and "\x1b" not in shown.stdout, shown.exception
    json.loads(CliRunner().invoke(inspect, [str(place), "--json"]).stdout)
    try:
        load_runner(bundle)
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"labels": "\x1b[2J"}',
    ],
)
def test_other_contents_are_refused_by_every_command(place: Path, text: bytes, tmp_path: Path) -> None:
    (place / "bundle.json").write_bytes(text)
    (tmp_path / "1.webm").touch()
    one_line(CliRunner().invoke(inspect, [str(place)]).exception)
    arguments = [str(tmp_path), "--engine", str(place), "--out", str(tmp_path / "p.csv")]
    one_line(CliRunner().invoke(score, arguments).exception)


def test_names_that_no_file_can_have_are_one_line(tmp_path: Path) -> None:
    for name in ("x" * 300, "\0"):
        with pytest.raises(UserError, match="^(cannot read the|no) engine"):
            open_bundle(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"[" * 100_000, b"{}", b'{"Layers": [{"LayerType": "Convolution", "Inputs": 5}, 7, {"LayerType": []}]}'],
)
def test_layers_of_any_form_are_read(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "layers.json").write_bytes(text)
    assert engine_layers(tmp_path / "layers.json")["layers"] in (0, 2)
