"""The pages of the documentation say what is so, and the site is made of them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ssv2rt
from ssv2rt.core.recipe_files import recipe_names
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.file_facts import find_anomalies
from ssv2rt.published.catalog import PUBLISHED
from ssv2rt.video.probe import VideoInfo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language, without their indentation."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        "".join(line[len(indent) :] for line in code.splitlines(keepends=True))
        for indent, kind, code in found
        if kind == language
    ]


@pytest.mark.slow
def test_the_site_is_made_without_warnings_and_has_all_public_names(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_click"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "-q", "-E", DOCS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    assert all(f'id="ssv2rt.{name}"' in page for name in ssv2rt.__all__ if name != "__version__")
    assert 'id="cmdoption-ssv2rt-score-out"' in (tmp_path / "commands.html").read_text()


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"} | {"settings"}
    assert pages <= set(index)


def test_every_recipe_and_published_network_is_on_its_page() -> None:
    training, published = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("training", "published"))
    recipes = set(recipe_names("pipelines")) - {"demo", "compare"}
    assert not [name for name in recipes if f"`{name}`" not in training]
    assert not [name for name in PUBLISHED if f"| `{name}`" not in published]


def constants(node: ast.AST) -> Iterator[str]:
    """Texts in an expression, and not those within a formatted one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        yield node.value if isinstance(node.value, str) else node.value.decode()
    elif not isinstance(node, ast.JoinedStr | ast.Compare):
        for child in ast.iter_child_nodes(node):
            yield from constants(child)


def reasons_in_the_code() -> set[str]:
    """Every word that says why a video cannot be used."""
    found: set[str] = set()
    for file in (ROOT / "ssv2rt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                arguments = {"BadVideo": node.args[:1], "BadClip": node.args[1:2], "_restart": node.args[1:2]}
                for argument in arguments.get(name, []):
                    found |= set(constants(argument))
            elif isinstance(node, ast.FunctionDef) and node.name in ("reason_of", "_why_not"):
                returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value]
                found |= {text for value in returned for text in constants(value)}
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_NO_VIDEOS":
                found |= {
                    list(constants(pair))[1] for pair in ast.iter_child_nodes(node.value) if pair.__dict__.get("elts")
                }
            elif isinstance(node, ast.Constant) and str(node.value).startswith("error: "):
                found |= {str(node.value).removeprefix("error: ")}
    return found - {"", "ok"}


def explained(table: str) -> set[str]:
    """What stands in code font in the first column of a table."""
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_every_reason_is_explained() -> None:
    """And no other: what the code does not say any more leaves the page."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").split("## Reasons\n")[1].split("\n## ")[0]
    unusable, suspicious = (explained(part) for part in text.split("are **suspicious**"))
    words = reasons_in_the_code()
    assert {"truncated", "missing", "timeout", "web page", "not finite", "decoder crashed"} <= words
    assert {word for word in unusable if not word.startswith("repacked file")} == words
    odd = VideoInfo(frames=1, width=16, height=8, duration=601.0, times=None, rate=250.0, streams=2)
    slow = VideoInfo(frames=9, width=64, height=64, duration=9.0, times=None, rate=0.5)
    anomalies = find_anomalies(odd) + find_anomalies(slow)
    said = {re.sub(r"[\d.]+(x\d+)?", lambda number: "WxH" if number[1] else "N", text) for text in anomalies}
    assert {word for word in suspicious if not word.startswith("same content")} == said


def parts_of_an_archive(folder: Path, source: Path, pieces: int, form: str) -> None:
    """The parts of SSv2's archive as they are downloaded: bare, in zip files, or in zip files without their suffix."""
    whole = folder / "whole.tgz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(
            source / "videos", "20bn-something-something-v2", filter=lambda i: None if "test-answers" in i.name else i
        )
    data = whole.read_bytes()
    whole.unlink()
    step = -(-len(data) // pieces)
    for number in range(pieces):
        name, part = f"20bn-something-something-v2-{number:02}", data[number * step : (number + 1) * step]
        path = folder / f"{name}{'.zip' if form == 'zip' else ''}"
        if form == "bare":
            path.write_bytes(part)
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr(name, part)


@pytest.mark.parametrize(("form", "pieces"), [("bare", 20), ("zip", 2), ("zip without suffix", 20)])
def test_the_commands_unpack_something_something_v2(form: str, pieces: int, tiny_set: Path, tmp_path: Path) -> None:
    if not shutil.which("unzip"):
        pytest.skip("no unzip on this machine")
    parts_of_an_archive(tmp_path, tiny_set, pieces, form)
    with zipfile.ZipFile(tmp_path / "20bn-something-something-download-package-labels.zip", "w") as file:
        for path in (*tiny_set.glob("*.json"), tiny_set / "test-answers.csv"):
            file.write(path, f"labels/{path.name}")
    joined, labels = (code for code in blocks(DOCS / "data.md", "sh") if "20bn-something-something" in code)
    lines = [line for line in joined.splitlines() if "tar zx" in line]
    chosen = lines[0] if form == "bare" else lines[1]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{chosen}\n{labels}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, expected = list_clips(tmp_path / "ssv2"), list_clips(tiny_set)
    assert found.labels == expected.labels and found.clips == expected.clips
    for clip in found.clips:
        assert (found.folder / clip.path).read_bytes() == (expected.folder / clip.path).read_bytes()


def test_lists_of_other_programs_become_tables(tiny_set: Path, tmp_path: Path) -> None:
    videos = sorted((tiny_set / "videos").glob("*.webm"))
    for name, few in (("train_list.txt", videos[:6]), ("val_list.txt", videos[6:8])):
        (tmp_path / name).write_text("".join(f"{video} {number % 2}\n" for number, video in enumerate(few)))
    (code,) = (code for code in blocks(DOCS / "data.md", "sh") if "train_list.txt" in code)
    subprocess.run(["bash", "-euc", code], cwd=tmp_path, check=True)
    found = list_clips(tmp_path)
    assert found.labels == ("0", "1") and [clip.label for clip in found.clips] == [0, 1] * 4
    assert [clip.split for clip in found.clips] == ["train"] * 6 + ["validation"] * 2


def test_the_code_on_the_page_about_preprocessing_is_the_example() -> None:
    """Which a test of the examples runs."""
    _, _, body = (ROOT / "examples" / "onnx_without_ssv2rt.py").read_text(encoding="utf-8").split('"""')
    assert body.strip() in [code.strip() for code in blocks(DOCS / "preprocessing.md", "python")]


def test_every_field_of_a_public_class_is_explained() -> None:
    """Sphinx leaves out those without a docstring."""
    classes = [found for name in ssv2rt.__all__ if dataclasses.is_dataclass(found := getattr(ssv2rt, name))]
    assert len(classes) == 8
    for found in classes:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
        assert isinstance(node, ast.ClassDef)
        for field, after in itertools.pairwise([*node.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{found.__name__}.{ast.unparse(field.target)}"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_can_be_parsed(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)


def test_pictures_are_small() -> None:
    large = [path.name for path in DOCS.iterdir() if path.suffix in (".png", ".svg") and path.stat().st_size > 200_000]
    assert not large
