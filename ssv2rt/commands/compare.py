"""`ssv2rt compare`: several networks, trained alike."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_model, complete_recipe, set_option


@click.command(cls=Command)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Data set: a folder or a table. Default: synthetic twins."
)
@click.option(
    "--recipe",
    default="compare",
    show_default=True,
    shell_complete=complete_recipe,
    help="Training recipe for all networks.",
)
@set_option("train.epochs=10")
@click.option("--out", type=click.Path(path_type=Path), default="comparison", show_default=True, help="Output folder.")
def compare(models: tuple[str, ...], data: Path | None, recipe: str, overrides: tuple[str, ...], out: Path) -> None:
    """Train networks with the same settings, and compare them.

    Measures accuracy, sensitivity to temporal order, FLOPs, memory and speed. MODEL is the name of a network. Default: a 2D
    ResNet with frame average, late fusion, LSTM and GRU, and a ResNet3D. The same command continues an interrupted comparison.

    \b
    Examples:
      ssv2rt compare
      ssv2rt compare resnet3d18 i3d --data DIR --set train.epochs=10
    """
    from ssv2rt.commands.output import print_facts
    from ssv2rt.core.atomic_files import remove_all_partial_files
    from ssv2rt.core.errors import os_errors_as_user_errors
    from ssv2rt.core.locks import exclusive
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.dataset.prepare import override_root, prepare
    from ssv2rt.models.registry import check_model_name
    from ssv2rt.report.comparison import report
    from ssv2rt.training.compare import DEFAULT_MODELS
    from ssv2rt.training.compare import compare as run_all
    from ssv2rt.training.fit_to_data import fit_to_data, set_by

    for name in models:
        check_model_name(name)
    settings = load_recipe(recipe, overrides)
    settings = settings.model_copy(update={"data": override_root(settings.data, data)})
    fix = "mend that, and repeat the command, or choose another --out"
    with exclusive(out, "comparing in"), os_errors_as_user_errors(f"cannot write to '{out}'", fix):
        out.mkdir(exist_ok=True)
        remove_all_partial_files(out)
        manifest = prepare(settings.data)
        clips = len(manifest.split("train", settings.data.max_bad))
        given, original = set_by(overrides), load_recipe(recipe)
        settings, text = fit_to_data(settings, clips, given=given, original=original)
        if text:
            click.echo(text, err=True)
        results = run_all(settings, models or DEFAULT_MODELS, manifest, out)
        report(results, settings, out)
    print_facts({"folder": str(out), "page": str(out / "comparison.md"), "picture": str(out / "comparison.png")}, False)
