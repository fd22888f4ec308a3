"""`ssv2rt score`: predictions for videos."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssv2rt.commands.options import Command, FloatRange, complete_engine_run, json_option, under
from ssv2rt.commands.output import print_facts
from ssv2rt.core.log import escape

if TYPE_CHECKING:
    from ssv2rt.scoring.run import ErrorReason

logger = logging.getLogger(__name__)

NOTHING_LEFT = "'{}' is complete; nothing is left to score (--overwrite scores again)"


@click.command(cls=Command)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@under(
    "Input and output",
    click.option(
        "--out", type=click.Path(path_type=Path), required=True, help="Predictions: .csv, .parquet or .jsonl."
    ),
    click.option(
        "--annotations",
        type=click.Path(path_type=Path),
        help="SSv2 annotation file, test-answers.csv, or data set: score its clips; adds accuracies.",
    ),
    click.option(
        "--split",
        type=click.Choice(["validation", "test", "train", "all"]),
        help="Split of the data set. Default: validation, or all if it has no splits.",
    ),
    click.option("--top-k", type=click.IntRange(min=1), help="Labels per video. Default: 5."),
    click.option("--logits", is_flag=True, help="Add a column with the logits of all classes."),
    click.option("--embeddings", is_flag=True, help="Add a column with the pooled features before the classifier."),
    click.option("--report", type=click.Path(path_type=Path), help="Also write a report of the output: an .html file."),
    click.option(
        "--overlay",
        type=click.Path(path_type=Path),
        help="Also write the videos with their labels drawn in, to a folder: .mp4 files.",
    ),
    click.option("--shard", help="Score only this shard of the videos, such as 3/16."),
    click.option("--sort", is_flag=True, help="Sort rows by path. Default: in the order of scoring."),
    click.option("--resume", is_flag=True, help="Continue an interrupted call."),
    click.option("--overwrite", is_flag=True, help="Replace the output file and the journal of an interrupted call."),
    json_option("the summary"),
)
@under(
    "Model",
    click.option(
        "--engine",
        help="Folder of an engine, or its name in the run, such as int8. Default: the newest that runs here.",
    ),
    click.option("--run", shell_complete=complete_engine_run, help="Run whose engine is used. Default: the newest."),
)
@under(
    "Views",
    click.option("--views", help="Temporal clips x spatial crops to average, such as 2x3. Default: the run's."),
)
@under(
    "Windows",
    click.option("--window", type=float, help="Length in seconds of a sliding window, with a row for each window."),
    click.option("--hop", type=float, help="Seconds between the starts of windows. Default: half a window."),
    click.option("--merge", "merged", is_flag=True, help="Merge consecutive windows of the same label into one row."),
)
@under(
    "Machine",
    click.option("--devices", help="GPU numbers, such as 0,2. Default: all visible GPUs."),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        help="Decoding threads per GPU. Default: all cores, divided among the GPUs.",
    ),
    click.option(
        "--cpu-share",
        type=FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="On a GPU: fraction of the videos that the CPU decodes.",
    ),
    click.option(
        "--cluster",
        metavar="auto|HOST:PORT",
        help="Score on a Ray cluster. auto: a running cluster, or a new local one.",
    ),
    click.option(
        "--timeout",
        type=FloatRange(min=1),
        default=60,
        show_default=True,
        help="Longest time in seconds for a video.",
    ),
)
def score(as_json: bool, report: Path | None, overlay: Path | None, **options: Any) -> None:
    """Score videos: one row for each, also for damaged ones.

    INPUT is a video, a folder (with its subfolders), a tar file, a URL such as s3://bucket/clips, a quoted glob pattern,
    @list.txt with a name per line, or - for names on stdin. With --annotations, exactly the clips that they name are scored;
    INPUT is then by default the folder `videos` beside the file, or the data set. A video that cannot be scored has
    `error: reason` as its status, and the exit code is then 3.

    With --cluster, a process scores on each GPU of a Ray cluster, or on groups of up to 16 cores. All machines need the same
    version of ssv2rt and must find the videos under the same paths or URLs; the engine is sent to them. During scoring, rows
    are also written to OUT.parts, 10,000 in each Parquet file.

    \b
    Examples:
      ssv2rt score videos/ --out preds.csv
      ssv2rt score match.mp4 --window 4 --merge --out segments.csv
    """
    from ssv2rt.report.after_scoring import AfterScoring
    from ssv2rt.scoring.request import ScoreRequest, is_done, score_as_requested

    out: Path = options["out"]
    after = AfterScoring(report, overlay)
    if is_done(out, resume=options["resume"], overwrite=options["overwrite"]):
        logger.info(NOTHING_LEFT.format(out))
        more = after.write(out)
        if as_json or more:
            print_facts({"out": str(out), "left": 0, **more}, as_json)
        return
    result = score_as_requested(ScoreRequest(**options))
    summary = result.summary
    facts = {"out": str(out), "engine": str(result.engine), "videos": summary.videos, "errors": summary.errors}
    decoders = {f"decoder of {kind}": str(decision) for kind, decision in sorted(summary.trusted.items())}
    resumed = {"resumed after": summary.resumed} if summary.resumed else {}
    reasons: dict[str, object] = {}
    if as_json and summary.reasons:
        reasons["errors by reason"] = {
            reason: {"rows": found.rows, "first": found.first} for reason, found in summary.reasons.items()
        }
    more = after.write(out)
    print_facts(facts | resumed | more | reasons | summary.accuracy | decoders, as_json, classes=summary.classes)
    if summary.errors:
        _print_reasons(summary.reasons)
        sys.exit(3)


def _print_reasons(reasons: dict[str, ErrorReason]) -> None:
    """Prints a table of error rows to stderr: how many there are for each reason, and the first names."""
    width = max(map(len, ("error", *reasons)))
    logger.warning(f"{'error':{width}}   rows  first")
    for reason, found in reasons.items():
        logger.warning(f"{reason:{width}}  {found.rows:5}  {', '.join(map(escape, found.first))}")
