"""`ssv2rt evaluate`: accuracy of a run's model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_run, json_option, set_option, under
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@under(
    "Input and output",
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Another data set than the run's own. Its classes are matched by name, and may be fewer.",
    ),
    click.option(
        "--split",
        type=click.Choice(["validation", "test", "train", "all"]),
        default="validation",
        show_default=True,
        help="Split to evaluate.",
    ),
    click.option("--out", type=click.Path(path_type=Path), help="Folder for the confusion matrix and its pictures."),
    click.option(
        "--predictions",
        type=click.Path(path_type=Path),
        help="Write a row for each clip: .csv, .parquet or .jsonl.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the file of --predictions."),
    click.option(
        "--report", type=click.Path(path_type=Path), help="Also write a report with its clips: an .html file."
    ),
    json_option("the result and the accuracy of each class"),
)
@under(
    "Model and views",
    click.option(
        "--checkpoint",
        type=click.Choice(["best", "last"]),
        default="best",
        show_default=True,
        help="Best or last epoch.",
    ),
    click.option("--views", help="Temporal clips x spatial crops to average, such as 2x3. Default: the recipe's."),
    set_option("clip.size=256", "how clips are read"),
)
def evaluate(run: str | None, as_json: bool, **options: Any) -> None:
    """Evaluate a run's model: top-1, top-5 and loss. Default: the newest run.

    RUN is the name or the folder of a run. Mean class accuracy is the mean over the classes that have clips; the classes with
    the lowest accuracy are listed.

    \b
    Examples:
      ssv2rt evaluate --split test --predictions preds.csv
      ssv2rt evaluate RUN --views 2x3 --set clip.size=256 --set clip.center_crop=1
    """
    from ssv2rt.api import jobs

    found = jobs.evaluate(run, settings=options.pop("overrides"), **options)
    facts = {"run": str(found.run), "epoch": found.epoch, "split": found.split, **found.result.facts()}
    print_facts(facts, as_json, classes=found.per_class())
