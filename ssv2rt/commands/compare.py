"""The command that compares networks."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.core.errors import UsageError, suggest


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--data", type=click.Path(path_type=Path), help="A data set of any kind. Default: synthetic twins.")
@click.option("--recipe", default="compare", show_default=True, help="How all of them are trained.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: train.epochs=10.")
@click.option("--out", type=click.Path(path_type=Path), default="comparison", show_default=True, help="Folder.")
def compare(models: tuple[str, ...], data: Path | None, recipe: str, overrides: tuple[str, ...], out: Path) -> None:
    """Train networks alike, and measure what they make of the order of time, and what they cost.

    Without arguments: frame averages, late fusion, LSTM, GRU and 3D convolutions on synthetic twins. An interrupted
    comparison is gone on with by the same command.
    """
    from ssv2rt.commands.output import print_facts
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.models.registry import model_names
    from ssv2rt.report.comparison import report
    from ssv2rt.training.compare import SYSTEMS
    from ssv2rt.training.compare import compare as run_all

    for name in models:
        if name not in model_names():
            raise UsageError(f"no model '{name}'{suggest(name, model_names())}")
    settings = load_recipe(recipe, overrides)
    settings = settings.model_copy(update={"data": with_root(settings.data, data)})
    out.mkdir(parents=True, exist_ok=True)
    systems = run_all(settings, models or SYSTEMS, prepare(settings.data), out)
    report(systems, settings, out)
    print_facts({"folder": str(out), "page": str(out / "comparison.md"), "picture": str(out / "comparison.png")}, False)
