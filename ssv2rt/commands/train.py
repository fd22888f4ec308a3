"""`ssv2rt train`: from a recipe and data to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import (
    Command,
    complete_initial_weights,
    complete_recipe,
    complete_run,
    json_option,
    set_option,
    under,
)
from ssv2rt.commands.output import print_facts
from ssv2rt.core.errors import UsageError


@click.command(cls=Command)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@under(
    "Input and output",
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Data set: a folder, a table or an annotation file. Default: the recipe's.",
    ),
    click.option("--name", default="", help="Name of the run directory. Default: recipe and time."),
    click.option("--report", type=click.Path(path_type=Path), help="Also write a report of the run: an .html file."),
    json_option("the result"),
)
@under(
    "Model and settings",
    click.option(
        "--init",
        shell_complete=complete_initial_weights,
        help="Initial weights: a run, a file, or a name such as r3d_18 or resnet50.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        help="Number of epochs; the warm-up keeps its share. With --resume: more than the run has.",
    ),
    set_option("train.epochs=10"),
)
@under(
    "Execution",
    click.option(
        "--resume",
        is_flag=False,
        flag_value="latest",
        metavar="[RUN]",
        shell_complete=complete_run,
        help="Continue an interrupted run. Default: the newest.",
    ),
    click.option("--dry-run", is_flag=True, help="Print optimizer steps, FLOPs, memory and least time; train nothing."),
)
def train(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Train a model. Without arguments: the `demo` recipe on synthetic clips.

    RECIPE is the name of a training recipe, or the path of a .toml file. With --data alone, it is ssv2-resnet3d18, or small
    where there is no GPU. For few clips, recipes choose learning rate, epochs and clips per optimizer step themselves.

    \b
    On several GPUs:
      torchrun --nproc-per-node 8 -m ssv2rt train ...

    \b
    Examples:
      ssv2rt train ssv2-resnet3d50 --data DIR --set train.batch_size=auto
      ssv2rt train finetune --init RUN --data DIR
    """
    from ssv2rt.api import jobs
    from ssv2rt.training.request import TrainRequest, plan_as_requested

    report: Path | None = options.pop("report")
    if dry_run:
        if report:
            raise UsageError(f"--report {report} with --dry-run, which trains nothing to report; leave one out")
        if plan := plan_as_requested(TrainRequest(**options)):
            print_facts(plan, as_json)
        return
    trained = jobs.train(settings=options.pop("overrides"), report=report, **options)
    if trained is not None:  # another process prints the result
        facts = {"run": str(trained.run), **trained.result.facts(), "pictures": str(trained.pictures)}
        print_facts(facts, as_json)
