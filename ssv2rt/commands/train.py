"""`ssv2rt train`: from a recipe and data to a run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ssv2rt.commands.options import Command, complete_recipe, complete_run, json_option, set_option, under
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError


@click.command(cls=Command)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@under(
    "Input and output",
    click.option("--data", type=click.Path(path_type=Path), help="A data set of any kind; see the README."),
    click.option("--name", default="", help="Name of the run directory. Default: recipe and time."),
    json_option("the result"),
)
@under(
    "Model and settings",
    click.option("--init", help="Weights to begin with: a file, or a name such as r3d_18 or resnet50."),
    set_option("train.epochs=10"),
)
@under(
    "What is done",
    click.option(
        "--resume",
        is_flag=False,
        flag_value="latest",
        metavar="[RUN]",
        shell_complete=complete_run,
        help="Go on with a run. Default: the newest.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Say what training would do and need, and end without a run directory."
    ),
)
def train(
    recipe: str | None,
    data: Path | None,
    overrides: tuple[str, ...],
    name: str,
    init: str | None,
    resume: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model. Without arguments: the `demo` recipe on synthetic clips.

    On several GPUs: torchrun --nproc-per-node 8 -m ssv2rt train ...

    \b
    Examples:
      ssv2rt train ssv2-resnet3d50 --data DIR --set train.batch_size=auto
      ssv2rt train ssv2-i3d --data DIR --dry-run
    """
    from ssv2rt.commands.dry_run import plan_of
    from ssv2rt.core.recipe_files import load_recipe
    from ssv2rt.core.run_folders import create_run, find_run
    from ssv2rt.dataset.prepare import export_test_clips, override_root, prepare
    from ssv2rt.report.run_summary import summarize
    from ssv2rt.training.distributed import process_group
    from ssv2rt.training.trainer import Trainer

    overrides = (*overrides, f"model.init={json.dumps(init)}") if init else overrides
    _check_resume(resume, recipe, name, init)
    recipe = recipe or ("ssv2-resnet3d18" if data else "demo")
    with process_group() as group:
        resumed = find_run(None if resume == "latest" else resume) if resume else None
        settings = load_recipe(str(resumed.recipe_file) if resumed else recipe, overrides)
        settings = settings.model_copy(update={"data": override_root(settings.data, data)})
        if group.size > 1:
            group.from_rank_zero(lambda: bool(prepare(settings.data)))  # one of them makes what is not there
        manifest = prepare(settings.data)
        trainer = Trainer(settings, manifest, group)
        if resumed:
            trainer.resume(resumed)
        if dry_run:
            if group.is_rank_zero:
                print_facts(plan_of(trainer), as_json)
            return
        run = resumed or group.from_rank_zero(lambda: create_run(_stem(recipe), name))
        try:
            result = trainer.fit(run)
        except BaseException:
            if group.is_rank_zero:
                run.remove_unless_started()
            raise
        if not group.is_rank_zero:
            return
    pictures = summarize(run, manifest.labels)
    if settings.data.synthetic and settings.data.test_videos:
        export_test_clips(manifest, Path(settings.data.test_videos))
    print_facts({"run": str(run.path), **result.as_dict(), "pictures": str(pictures)}, as_json)


def _check_resume(resume: str | None, recipe: str | None, name: str, init: str | None) -> None:
    """Refuses what a run that goes on has already."""
    if resume and (recipe or name or init):
        given = f"recipe '{recipe}'" if recipe else f"--name {name}" if name else f"--init {init}"
        raise UsageError(
            f"--resume {resume} with {given}: a run goes on with its own recipe; leave out the one or the other"
        )


def _stem(recipe: str) -> str:
    """What a run of a recipe is called; the recipe of a run is called like the run."""
    path = Path(recipe)
    return path.parent.name if path.name == "recipe.toml" else path.stem
