"""--help, completion, and the commands that list: `recipes` and `models`."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from ssv2rt.cli import app
from ssv2rt.commands.options import OTHER
from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe, recipe_names
from ssv2rt.engines.request import requests_for
from ssv2rt.models.registry import check_model_name, model_names
from ssv2rt.published.catalog import PUBLISHED

ROOT = Path(__file__).parents[2]


def commands(group: click.Group = app, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


def help_of(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, "--help"], prog_name="ssv2rt", terminal_width=80)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("words", [(), ("benchmark",)])
def test_what_a_command_does_fits_its_line(words: tuple[str, ...]) -> None:
    said = help_of(*words).split("Commands:\n")[1].rstrip().splitlines()
    assert len(said) == sum(found[:-1] == words for found in commands())
    for line in said:
        assert line.endswith(".") and not line.endswith("...") and len(line) <= 80


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_has_two_examples(words: tuple[str, ...]) -> None:
    said = help_of(*words)
    examples = said.split("Examples:\n")[1].split("\n\n")[0].splitlines()
    assert len(examples) == 2 and all(line.startswith("    ssv2rt ") for line in examples)
    assert any(line.startswith(f"    ssv2rt {' '.join(words)}") for line in examples)
    assert max(map(len, said.splitlines())) <= 80


def command_at(words: tuple[str, ...]) -> click.Command:
    found: click.Command = app
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the files that examples name."""
    (tmp_path / "DIR" / "videos").mkdir(parents=True)
    for name in ("1.csv", "2.csv", "3.csv", "*.csv", "part-*.csv", "my.toml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def check_example(line: str) -> None:
    """Parses an example, and checks the recipe, settings and networks that it names."""
    program, *words = shlex.split(line, comments=True)
    command: click.Command = app
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if isinstance(command, click.Group):
        return
    options = command.make_context(program, words).params
    if command.name == "build-engine":
        assert options.pop("as_json") in (True, False)
        for request in requests_for(**options):
            request.engine_recipe()
    elif "recipe" in options:
        load_recipe(options["recipe"] or "demo", options["overrides"])
    for model in (*options.get("models", ()), *((options["model"],) if options.get("model") else ())):
        check_model_name(model)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_examples_are_right(words: tuple[str, ...], place: None) -> None:
    for line in help_of(*words).split("Examples:\n")[1].split("\n\n")[0].splitlines():
        check_example(line)


NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]


def commands_in(page: Path) -> Iterator[str]:
    """The calls of `ssv2rt` in blocks of shell commands, also those by torchrun and at the end of a pipe."""
    for block in page.read_text(encoding="utf-8").split("```sh\n")[1:]:
        for line in block.split("```")[0].replace("\\\n", " ").splitlines():
            if (found := re.search(r"(?:^|\| |-m )(ssv2rt .*)", line)) and "${" not in line:
                yield found[1]


def test_commands_in_the_documentation_are_right(place: None) -> None:
    lines = [line for page in PAGES for line in commands_in(page)]
    for line in lines:
        check_example(line)
    assert len(lines) > 100


def anchors(page: Path) -> set[str]:
    """What links can end in to lead to a heading of a page, as GitHub and Sphinx make it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_in_the_documentation_lead_somewhere() -> None:
    made = {"settings.md"}  # by docs/conf.py
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
            name, _, anchor = "".join(link).partition("#")
            if name.startswith(("http:", "https:")) or name in made:
                continue
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_is_one_or_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_many_options_stand_in_groups(words: tuple[str, ...]) -> None:
    lines = help_of(*words).splitlines()
    headings = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    own = [o for o in command_at(words).params if isinstance(o, click.Option) and o.name not in ("verbose", "quiet")]
    if len(own) > 6:
        assert len(headings) >= 3 and headings[-1] == OTHER
    options = lines[lines.index("  Examples:") :]
    shown = [line.split("  ")[1].strip() for line in options if line.startswith("  -")]
    for option in own:
        assert option.help or option.name == "help"
        assert sum(option.opts[-1] in words.replace(",", "").split() for words in shown) == 1


def test_every_setting_of_a_recipe_is_shown_with_its_value() -> None:
    done = CliRunner().invoke(app, ["recipes", "demo"])
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    assert "size = 48 Height and width of a clip in pixels. Allowed: an integer from 16 to 1024. Default: 224." in text
    assert 'optimizer = "adamw"' in text and 'Allowed: "sgd", "adamw". Default: "sgd".' in text
    tables = [line for line in done.output.splitlines() if line.startswith("[")]
    assert tables == ["[data]", "[data.synthetic]", "[clip]", "[augment]", "[model]", "[train]"]
    settings = {
        entry["setting"]: entry for entry in json.loads(CliRunner().invoke(app, ["recipes", "int8", "--json"]).output)
    }
    assert settings["engine.precision"]["value"] == "int8" and settings["engine.batch.max"]["value"] == 32
    assert "0 to 100" in settings["calibration.max_drop"]["allowed"]
    assert all(entry.keys() == {"setting", "value", "meaning", "allowed", "default"} for entry in settings.values())


def test_recipes_are_listed_with_what_they_are() -> None:
    found = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).output)
    assert {entry["recipe"] for entry in found} == {*recipe_names("pipelines"), *recipe_names("engines")}
    assert all(len(entry["about"]) > 10 and not entry["about"].startswith("#") for entry in found)
    said = CliRunner().invoke(app, ["recipes"]).output
    assert said.index("training recipes") < said.index("ssv2-i3d") < said.index("engine recipes") < said.index("fp16")


def test_a_recipe_is_also_shown_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[gate]\nclips = 7\n")
    found = json.loads(CliRunner().invoke(app, ["recipes", str(tmp_path / "mine.toml"), "--json"]).output)
    assert {"setting": "gate.clips", "value": 7}.items() <= next(
        e for e in found if e["setting"] == "gate.clips"
    ).items()
    with pytest.raises(UsageError, match="no recipe 'dem'; did you mean 'demo'"):
        CliRunner().invoke(app, ["recipes", "dem"], catch_exceptions=False)


def test_models_are_listed_with_their_parameters_and_published_weights() -> None:
    found = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)
    assert [entry["model"] for entry in found] == model_names()
    parameters = {entry["model"]: entry["parameters"] for entry in found}
    kinetics = 33_371_472  # of torchvision's r3d_18, for 400 classes
    assert parameters["r3d_18"] == kinetics - (400 - 174) * (512 + 1)
    weights = {weights["name"]: weights for entry in found for weights in entry["published"]}
    assert weights.keys() == PUBLISHED.keys() and weights["r3d_18"]["parameters"] == kinetics
    said = CliRunner().invoke(app, ["models"]).output
    assert f"{parameters['i3d']:,}" in said and max(map(len, said.splitlines())) <= 100
    for name, facts in weights.items():
        line = next(line for line in said.splitlines() if line.startswith(f"{name} ") and facts["license"] in line)
        assert f" {facts['top1']:.2f} " in line and f" {facts['gmacs']:.1f} " in line


def completed(*words: str) -> list[str]:
    """What TAB gives for the last word."""
    *before, last = words
    return [item.value for item in ShellComplete(app, {}, "ssv2rt", "_X").get_completions(before, last)]


def test_names_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("demo-1", "demo-2", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "recipe.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert completed("evaluate", "demo") == ["demo-1", "demo-2"]
    assert completed("score", "--run", "o") == ["other"]
    assert completed("train", "--resume", "demo") == ["demo-1", "demo-2"]
    assert completed("build-engine", "oth") == completed("inspect", "oth") == ["other"]
    assert completed("train", "ssv2-resnet3d18") == ["ssv2-resnet3d18"]
    assert completed("import", "r2") == completed("train", "--init", "r2") == ["r2plus1d_18"]
    assert completed("train", "--init", "demo") == ["demo-1", "demo-2"]
    assert completed("build-engine", "--recipe", "in") == ["int8"]
    assert completed("recipes", "fp") == ["fp16", "fp32", "fp8"]
    assert completed("compare", "--recipe", "com") == ["compare"]
    assert completed("compare", "r3d_18", "i3") == completed("benchmark", "engine", "i3") == ["i3d"]


def test_completion_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from click.shell_completion import ShellComplete\n"
        "from ssv2rt.cli import app\n"
        "for before, part in ((['evaluate'], 'd'), (['train'], 'dem'), (['recipes'], 'int'), (['compare'], 'i3')):\n"
        "    print(*(item.value for item in ShellComplete(app, {}, 'ssv2rt', '_X').get_completions(before, part)))\n"
        "assert 'torch' not in sys.modules\n"
    )
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    (tmp_path / "runs" / "demo-1" / "recipe.toml").touch()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["demo-1", "demo", "int8", "i3d"]


def test_the_shell_is_told_names() -> None:
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'ssv2rt'; from ssv2rt.cli import main; main()"]
    told = {"_SSV2RT_COMPLETE": "bash_complete", "COMP_WORDS": "ssv2rt train ssv2-i", "COMP_CWORD": "2"}
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True)
    assert done.stdout == "plain,ssv2-i3d\n", done.stderr
