"""`ssv2rt evaluate`: accuracy of a run's model on a split."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_run, json_option, under
from ssv2rt.commands.output import print_facts


@click.command(cls=Command)
@click.argument("run", required=False, shell_complete=complete_run)
@under(
    "Input and output",
    click.option("--data", type=click.Path(path_type=Path), help="Another data set than the run's own."),
    click.option(
        "--split",
        type=click.Choice(["validation", "test", "train"]),
        default="validation",
        show_default=True,
        help="Split to evaluate.",
    ),
    click.option("--out", type=click.Path(path_type=Path), help="Folder for the confusion matrix and its pictures."),
    json_option("the result"),
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
)
def evaluate(out: Path | None, as_json: bool, **options: Any) -> None:
    """Evaluate a run's model: top-1, top-5 and loss. Default: the newest run.

    RUN is the name or the folder of a run.

    \b
    Examples:
      ssv2rt evaluate
      ssv2rt evaluate --split test --views 2x3 --out test-results
    """
    from ssv2rt.core.locks import exclusive
    from ssv2rt.report.run_summary import write_evaluation
    from ssv2rt.training.request import EvaluateRequest, evaluate_as_requested

    request = EvaluateRequest(**options)
    with exclusive(out, "evaluating into") if out else nullcontext():
        run, trained, result = evaluate_as_requested(request)
        if out:
            write_evaluation(out, result, trained.labels)
    print_facts({"run": str(run.path), "epoch": trained.epoch, "split": request.split, **result.as_dict()}, as_json)
