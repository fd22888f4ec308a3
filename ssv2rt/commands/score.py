"""`ssv2rt score`: predictions for videos."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from ssv2rt.commands.options import Command, complete_run, json_option, under
from ssv2rt.commands.output import print_facts

logger = logging.getLogger(__name__)

WHAT_IS_DONE = "'{}' is there and whole, by an earlier call; nothing is left to do (--overwrite scores anew)"


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
        help="An annotation file of SSv2, or its test-answers.csv: only its clips, with top-1 and top-5.",
    ),
    click.option("--top-k", type=click.IntRange(min=1), help="Labels per video. Default: 5."),
    click.option("--logits", is_flag=True, help="Also the scores of all classes, as logarithms."),
    click.option("--embeddings", is_flag=True, help="Also what the network sees in each video: its pooled features."),
    click.option("--shard", help="Only the third of sixteen shares, by path: 3/16."),
    click.option("--sort", is_flag=True, help="Rows in the order of their paths, not in that of scoring."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted call."),
    click.option("--overwrite", is_flag=True, help="Replace the output file, and what an interrupted call has left."),
    json_option("the summary"),
)
@under(
    "Model",
    click.option("--engine", type=click.Path(path_type=Path), help="A bundle. Default: the newest of the newest run."),
    click.option("--run", shell_complete=complete_run, help="The run whose newest engine is used."),
)
@under(
    "What is looked at",
    click.option("--views", help="Moments x squares of each video that are averaged, such as 2x3. Default: the run's."),
)
@under(
    "Windows",
    click.option("--window", type=float, help="Seconds of a window that slides over each video, with a row for each."),
    click.option("--hop", type=float, help="Seconds from one window to the next. Default: half a window."),
    click.option("--merge", "merged", is_flag=True, help="Neighbouring windows of the same label become one row."),
)
@under(
    "Machine",
    click.option("--devices", help="GPUs by number, such as 0,2. Default: all that are visible."),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        help="Decoding threads for each GPU. Default: one a core.",
    ),
    click.option(
        "--cpu-share",
        type=click.FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="On a GPU: share of the videos that CPUs decode beside NVDEC.",
    ),
    click.option(
        "--cluster",
        metavar="auto|HOST:PORT",
        help="Score on a Ray cluster; auto: one that is there, or a new one.",
    ),
    click.option("--timeout", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds for a video."),
)
def score(as_json: bool, **options: Any) -> None:
    """Score videos: one row for each, whatever happens.

    INPUT is a file, a folder with all below it, a tar file, an address such as s3://bucket/clips, a pattern in quotes,
    @list.txt, or - for names on stdin. With --annotations, it is `videos` beside them unless it is named. With --window,
    there is a row for each window.

    With --cluster, a process scores on each GPU of a Ray cluster, or on each share of its cores. The machines need the same
    ssv2rt, and the videos under the same paths or addresses: one that is not where a machine looks has `error: missing`. The
    engine is sent to them. Rows are also in OUT.parts, 10,000 to a Parquet file, as they come.

    \b
    Examples:
      ssv2rt score videos/ --out preds.csv
      ssv2rt score match.mp4 --window 4 --merge --out segments.csv
    """
    from ssv2rt.scoring.request import ScoreRequest, is_done, score_as_requested

    out: Path = options["out"]
    if is_done(out, resume=options["resume"], overwrite=options["overwrite"]):
        logger.info(WHAT_IS_DONE.format(out))
        if as_json:
            print_facts({"out": str(out), "left": 0}, as_json)
        return
    result = score_as_requested(ScoreRequest(**options))
    summary = result.summary
    facts = {"out": str(out), "engine": str(result.engine), "videos": summary.videos, "errors": summary.errors}
    decoders = {f"decoder of {kind}": str(decision) for kind, decision in sorted(summary.trusted.items())}
    resumed = {"resumed after": summary.resumed} if summary.resumed else {}
    print_facts(facts | resumed | summary.accuracy | decoders, as_json)
    if summary.errors:
        sys.exit(3)
