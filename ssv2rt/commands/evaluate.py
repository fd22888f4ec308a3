"""`ssv2rt evaluate`: what a run's model reaches on a split."""

from __future__ import annotations

from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_run, json_option
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--split", type=click.Choice(["validation", "test", "train"]), default="validation", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Another data set than the run's own.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--views", help="Moments x squares of each clip that are averaged, such as 2x3. Default: the recipe's.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write what is taken for what into this folder, and draw it."
)
@json_option("the result")
def evaluate(
    run: str | None,
    split: str,
    data: Path | None,
    checkpoint: str,
    views: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a run's model: top-1, top-5 and loss. Default: the newest run.

    \b
    Examples:
      ssv2rt evaluate
      ssv2rt evaluate --split test --views 2x3 --out test-results
    """
    from ssv2rt.core.hardware import choose_device, choose_precision
    from ssv2rt.core.recipes import with_views
    from ssv2rt.core.run_folders import find_run
    from ssv2rt.dataset.prepare import override_root, prepare
    from ssv2rt.models.weights import load_trained
    from ssv2rt.report.run_summary import write_evaluation
    from ssv2rt.training.determinism import set_deterministic
    from ssv2rt.training.evaluate import evaluate as evaluate_split

    where = find_run(run)
    trained = load_trained(where, checkpoint)
    manifest = prepare(override_root(trained.recipe.data, data))
    manifest.check_classes(trained.labels, f"run '{where.path}'")
    device = choose_device()
    recipe = trained.recipe
    set_deterministic(recipe.train.deterministic)
    if views:
        recipe = recipe.model_copy(update={"clip": with_views(recipe.clip, views)})
    result = evaluate_split(
        trained.model.channels_last().to(device),
        manifest.split(split, recipe.data.max_bad),
        recipe,
        device=device,
        precision=choose_precision(trained.recipe.train.precision, device),
    )
    if out:
        write_evaluation(out, result, trained.labels)
    print_facts({"run": str(where.path), "epoch": trained.epoch, "split": split, **result.as_dict()}, as_json)
