"""Checks our calls of NVIDIA's bindings statically, because most of that code does not run without a GPU.

The signatures come from the docstrings of the bindings of TensorRT for RTX, which has the same parameters as TensorRT. Names
that only one of the two has are accessed as strings by `getattr` or `hasattr`, and are not checked here.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ssv2rt.engines

trt: Any = pytest.importorskip("tensorrt_rtx")

FILES = sorted((Path(ssv2rt.engines.__file__).parent / "backends" / "tensorrt").glob("*.py"))
OBJECTS = {
    "trt": trt,
    "builder": trt.Builder,
    "network": trt.INetworkDefinition,
    "parser": trt.OnnxParser,
    "problem": trt.ParserError,
    "config": trt.IBuilderConfig,
    "profile": trt.IOptimizationProfile,
    "cache": trt.ITimingCache,
    "runtime": trt.Runtime,
    "engine": trt.ICudaEngine,
    "context": trt.IExecutionContext,
    "inspector": trt.EngineInspector,
}
"""The NVIDIA class of our variables and attributes, by name without a leading underscore."""
ELSEWHERE = {"runner.py": {"config": trt.IRuntimeConfig}}


def uses(path: Path) -> Iterator[tuple[ast.Attribute, str, Any]]:
    """Uses of attributes of NVIDIA's objects: the node, a location for error messages, and the class of the object."""
    objects = OBJECTS | ELSEWHERE.get(path.name, {})
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and (owner := resolve(node.value, objects)) is not None:
            yield node, f"{path.name}:{node.lineno}: {ast.unparse(node)}", owner


def calls(path: Path) -> Iterator[tuple[ast.Call, str, Any]]:
    """Calls of NVIDIA's methods: the node, a location for error messages, and the method."""
    objects = OBJECTS | ELSEWHERE.get(path.name, {})
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method = getattr(resolve(node.func.value, objects), node.func.attr, None)
            if method is not None and signatures(method):
                yield node, f"{path.name}:{node.lineno}: {ast.unparse(node)}", method


def resolve(node: ast.expr, objects: dict[str, Any]) -> Any:
    """The NVIDIA class of an expression; None if it is not NVIDIA's."""
    if isinstance(node, ast.Name):
        return objects.get(node.id)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return objects.get(node.attr.removeprefix("_"))
        return getattr(resolve(node.value, objects), node.attr, None)
    return None


def signatures(function: Any) -> list[list[tuple[str, bool]]]:
    """Parameters of each overload, without self: the name, and whether it is optional."""
    found = []
    for text in re.findall(r"^(?:\d+\. )?\w+\((self: .*)\) -> ", function.__doc__ or "", re.MULTILINE):
        parts = re.split(r"(?:^|, )(\w+): ", text)[1:]
        parameters = [(name, " = " in kind) for name, kind in zip(parts[::2], parts[1::2], strict=True)]
        found.append(parameters[1:])
    return found


def takes(parameters: list[tuple[str, bool]], call: ast.Call) -> bool:
    """Whether a call is valid for a method with these parameters."""
    named = {keyword.arg for keyword in call.keywords}
    left = parameters[len(call.args) :]
    return (
        len(call.args) <= len(parameters)
        and named <= {name for name, _ in left}
        and all(name in named or optional for name, optional in left)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_attributes_exist(path: Path) -> None:
    assert [where for node, where, owner in uses(path) if not hasattr(owner, node.attr)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_method_calls_match_signatures(path: Path) -> None:
    wrong = [where for call, where, method in calls(path) if not any(takes(way, call) for way in signatures(method))]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_assigned_properties_are_writable(path: Path) -> None:
    stored = [
        (where, getattr(owner, node.attr)) for node, where, owner in uses(path) if isinstance(node.ctx, ast.Store)
    ]
    assert [where for where, found in stored if not (isinstance(found, property) and found.fset)] == []


def test_overridden_methods_match_nvidias_signatures() -> None:
    """Methods of our loggers and monitors have the parameters of their base classes."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(resolve(base, OBJECTS) for base in node.bases):
                (base,) = (resolve(base, OBJECTS) for base in node.bases)
                for method in node.body:
                    assert isinstance(method, ast.FunctionDef)
                    names = [argument.arg for argument in method.args.args[1:]]
                    assert [name for name, _ in signatures(getattr(base, method.name))[0]] == names, method.name
                    found.append(method.name)
    assert found == ["log", "phase_start", "step_complete", "phase_finish"]


def test_this_checker_finds_errors(tmp_path: Path) -> None:
    """The checker finds wrong names and calls, and sees the important calls in our code."""
    path = tmp_path / "wrong.py"
    path.write_text("config.no_such\ntrt.BuilderFlag.NO_SUCH\nself._engine.get_tensor_shape()\ntrt.ILogger\n")
    missing = [where for node, where, owner in uses(path) if not hasattr(owner, node.attr)]
    assert missing == ["wrong.py:1: config.no_such", "wrong.py:2: trt.BuilderFlag.NO_SUCH"]
    ((call, _, method),) = calls(path)
    assert not any(takes(way, call) for way in signatures(method))
    assert signatures(trt.Builder.create_network) == [[("flags", True)]]
    assert len(signatures(trt.IExecutionContext.set_input_shape)) == 3
    called = {call.func.attr for path in FILES for call, *_ in calls(path) if isinstance(call.func, ast.Attribute)}
    assert called >= {
        "build_serialized_network",
        "execute_async_v3",
        "set_tensor_address",
        "set_timing_cache",
        "serialize",
    }
