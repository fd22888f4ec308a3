"""Commands that train and evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError


@click.command()
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="A data set of any kind; see the README.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: train.epochs=10.")
@click.option("--name", default="", help="Name of the run directory. Default: recipe and time.")
@click.option("--init", help="Weights to begin with: a file, or a name such as r3d_18 or resnet50.")
@click.option(
    "--resume", is_flag=False, flag_value="latest", metavar="[RUN]", help="Go on with a run. Default: the newest."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    recipe: str | None,
    data: Path | None,
    overrides: tuple[str, ...],
    name: str,
    init: str | None,
    resume: str | None,
    as_json: bool,
) -> None:
    """Train a model. Without arguments: the `demo` recipe on synthetic clips.

    On several GPUs: torchrun --nproc-per-node 8 -m ssv2rt train ...
    """
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.core.run_folders import create_run, find_run
    from ssv2rt.dataset.prepare import offer_test_videos, prepare, with_root
    from ssv2rt.report.run_summary import summarize
    from ssv2rt.training.distributed import group_of_processes
    from ssv2rt.training.trainer import Trainer

    if init:
        overrides = (*overrides, f"model.init={json.dumps(init)}")
    if resume and (recipe or name or init):
        given = f"recipe '{recipe}'" if recipe else f"--name {name}" if name else f"--init {init}"
        raise UsageError(
            f"--resume {resume} with {given}: a run goes on with its own recipe; leave out the one or the other"
        )
    with group_of_processes() as group:
        if resume:
            run = find_run(None if resume == "latest" else resume)
            settings = load_recipe(str(run.recipe_file), overrides)
        else:
            recipe = recipe or ("ssv2-resnet3d18" if data else "demo")
            settings = load_recipe(recipe, overrides)
        settings = settings.model_copy(update={"data": with_root(settings.data, data)})
        if group.size > 1:
            group.from_first(lambda: bool(prepare(settings.data)))  # one of them makes what is not there
        manifest = prepare(settings.data)
        trainer = Trainer(settings, manifest, group)
        if resume:
            trainer.resume(run)
        else:
            path = Path(recipe or "")  # the recipe of a run is called like the run
            stem = path.parent.name if path.name == "recipe.toml" else path.stem
            run = group.from_first(lambda: create_run(stem, name))
        result = trainer.fit(run)
        if not group.first:
            return
    pictures = summarize(run, manifest.labels)
    if settings.data.synthetic and settings.data.test_videos:
        offer_test_videos(manifest, Path(settings.data.test_videos))
    print_facts({"run": str(run.path), **result.as_dict(), "pictures": str(pictures)}, as_json)


@click.command()
@click.argument("run", required=False)
@click.option("--split", type=click.Choice(["validation", "test", "train"]), default="validation", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Another data set than the run's own.")
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@click.option("--views", help="Moments x squares of each clip that are averaged, such as 2x3. Default: the recipe's.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write what is taken for what into this folder, and draw it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    run: str | None,
    split: str,
    data: Path | None,
    checkpoint: str,
    views: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a run's model: top-1, top-5 and loss. Default: the newest run."""
    from ssv2rt.core.hardware import choose_device, choose_precision
    from ssv2rt.core.recipes import with_views
    from ssv2rt.core.run_folders import find_run
    from ssv2rt.dataset.prepare import prepare, with_root
    from ssv2rt.models.weights import load_trained
    from ssv2rt.report.run_summary import write_out
    from ssv2rt.training.determinism import set_deterministic
    from ssv2rt.training.evaluate import evaluate as evaluate_split

    where = find_run(run)
    trained = load_trained(where, checkpoint)
    manifest = prepare(with_root(trained.recipe.data, data))
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
        write_out(out, result, trained.labels)
    print_facts({"run": str(where.path), "epoch": trained.epoch, "split": split, **result.as_dict()}, as_json)
