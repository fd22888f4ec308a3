"""`ssv2rt compare`: networks beside each other."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_model, complete_recipe, set_option
from ssv2rt.core.errors import UsageError, suggest


@click.command(cls=Command)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option("--data", type=click.Path(path_type=Path), help="A data set of any kind. Default: synthetic twins.")
@click.option(
    "--recipe",
    default="compare",
    show_default=True,
    shell_complete=complete_recipe,
    help="How all of them are trained.",
)
@set_option("train.epochs=10")
@click.option("--out", type=click.Path(path_type=Path), default="comparison", show_default=True, help="Folder.")
def compare(models: tuple[str, ...], data: Path | None, recipe: str, overrides: tuple[str, ...], out: Path) -> None:
    """Train several networks alike, and compare them.

    It is measured what they make of the order of time, and what they cost. Without arguments: frame averages, late fusion,
    LSTM, GRU and 3D convolutions on synthetic twins. An interrupted comparison is gone on with by the same command.

    \b
    Examples:
      ssv2rt compare
      ssv2rt compare resnet3d18 i3d --data DIR --set train.epochs=10
    """
    from ssv2rt.commands.output import print_facts
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.prepare import override_root, prepare
    from ssv2rt.models.registry import model_names
    from ssv2rt.report.comparison import report
    from ssv2rt.training.compare import DEFAULT_MODELS
    from ssv2rt.training.compare import compare as run_all

    for name in models:
        if name not in model_names():
            raise UsageError(f"no model '{name}'{suggest(name, model_names())}")
    settings = load_recipe(recipe, overrides)
    settings = settings.model_copy(update={"data": override_root(settings.data, data)})
    out.mkdir(parents=True, exist_ok=True)
    systems = run_all(settings, models or DEFAULT_MODELS, prepare(settings.data), out)
    report(systems, settings, out)
    print_facts({"folder": str(out), "page": str(out / "comparison.md"), "picture": str(out / "comparison.png")}, False)
